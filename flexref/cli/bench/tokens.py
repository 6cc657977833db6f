"""Has the tokens of a benchmark's runs checked once nothing is timed any more; it computes nothing itself."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexref.bench.benchmark import Benchmark
    from flexref.bench.report import Report
    from flexref.check.run_tokens import TokensChecked


def check_runs(benchmark: "Benchmark", report: "Report") -> "tuple[TokensChecked | None, float]":
    """What was found about the tokens that every run gave, and the seconds that it took; None if none are checked.

    Nothing is after an interrupt: whoever ends a benchmark does not wait for it. Raises `WrongTokens`.
    """
    if benchmark.tokens is None or report.cut_short is not None:
        return None, 0.0
    from flexref.check.forced_walk import PortRounding
    from flexref.check.run_tokens import check_tokens, rows_checked

    began, arguments, file = time.perf_counter(), benchmark.arguments, benchmark.file
    prompts = [prompt.token_ids or () for prompt in benchmark.prompts]
    lengths = [len(prompt) + len(given) for prompt, given in zip(prompts, benchmark.tokens, strict=True)]
    rows = rows_checked(file.spec, lengths, arguments.check_rows, arguments.seed)
    if not rows:
        return None, 0.0
    policy, session = benchmark.policy, benchmark.engine.session
    rounding = PortRounding(session.backend.caps.compute_dtype, policy.cache_groups_of)
    found = check_tokens(file, session.tensor, prompts, benchmark.tokens, rows, (rounding, arguments.seed))
    return found, time.perf_counter() - began
