"""Has the tokens of a benchmark's runs checked once nothing is timed any more; it computes nothing itself."""

import logging
import time
from typing import TYPE_CHECKING

from flexref.errors import duration

if TYPE_CHECKING:
    from flexref.bench.benchmark import Benchmark
    from flexref.bench.report import Report
    from flexref.check.run_tokens import TokensChecked
    from flexref.cli.show.progress import Progress

LOG = logging.getLogger(__name__)

WHAT = "checking the tokens of the runs"


def check_runs(benchmark: "Benchmark", report: "Report", shown: "Progress") -> "tuple[TokensChecked | None, float]":
    """What was found about the tokens that every run gave, and the seconds that it took; None if none are checked.

    How long it will take is logged and `shown` before it begins, and then how far it is. Nothing is checked after an
    interrupt: whoever ends a benchmark does not wait for it. Raises `WrongTokens`.
    """
    if benchmark.tokens is None or report.cut_short is not None:
        return None, 0.0
    from flexref.check.forced.logits import Drawing
    from flexref.check.forced.walk import PortRounding
    from flexref.check.run_tokens import check_tokens, forced_rows, rows_checked, work_of

    began, arguments, file, given = time.perf_counter(), benchmark.arguments, benchmark.file, benchmark.tokens
    prompts = [prompt.token_ids or () for prompt in benchmark.prompts]
    lengths = [len(prompt) + len(tokens) for prompt, tokens in zip(prompts, given, strict=True)]
    rows = rows_checked(file.spec, lengths, arguments.check_rows, arguments.seed)
    if not rows:
        return None, 0.0
    work = work_of(file.spec, forced_rows(prompts, given, rows, file.spec.vocabulary))
    named = f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}"
    cost = f"{named}, {work.flops / 1e12:.2g} TFLOP, about {duration(work.seconds)}"
    LOG.info("%s: %s", WHAT, cost)
    shown.begin(f"{WHAT} ({cost})", work.layers, "layers")
    policy, session = benchmark.policy, benchmark.engine.session
    rounding = PortRounding(session.backend.caps.compute_dtype, policy.cache_groups_of)
    how = Drawing(rounding, arguments.seed)
    found = check_tokens(file, session.stored, prompts, given, rows, how, shown.advance)
    return found, time.perf_counter() - began
