"""Runs a benchmark's job again, for a few tokens, to find what its seconds are made of; it times no result."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from flexref.bench.breakdown import DECODE, PREFILL, STEPS_MOST, Breakdown, LaneTimes, OperatorTimes, TimeParts
from flexref.block.tracing.trace import Trace
from flexref.block.watch import OnVisit
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.errors import FlexrefError
from flexref.policy import Policy
from flexref.text.prompts import Prompt


class RunsDiffer(FlexrefError):
    """A run gave other tokens than the one before it, or not as many as were asked for."""


def check_counts(what: str, needed: Iterable[int], tokens: Sequence[Sequence[int]]) -> None:
    """`RunsDiffer`, naming the first row of `what` that has not as many tokens as are `needed` of it."""
    for row, (count, given) in enumerate(zip(needed, tokens, strict=True)):
        if len(given) != count:
            raise RunsDiffer(f"{what}, row {row}: gave {len(given)} new tokens, needed {count}: it is no result")


def check_same_tokens(what: str, before: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> None:
    """`RunsDiffer`, naming the first that does, unless all rows of `what` begin as they did before."""
    for row, (was, now) in enumerate(zip(before, tokens, strict=True)):
        for step, (needed, found) in enumerate(zip(was, now, strict=False)):
            if needed != found:
                raise RunsDiffer(
                    f"{what}, row {row}: new token {step} is {found}, and was {needed} in the run before it: the same "
                    "job on the same port must give the same tokens, and none of its runs is a result"
                )


def breakdown_of(
    engine: Engine,
    job: tuple[Sequence[Prompt], Sequence[Sequence[int]]],
    request: Request,
    policy: Policy,
    medians: tuple[float, float | None],
) -> Breakdown:
    """What the seconds of a prefill and of a decode step (`medians`) are made of.

    `job`: its prompts, and the tokens that the timed runs gave, which must come again: `RunsDiffer`.
    """
    began = time.perf_counter()
    prompts, tokens = job
    new_tokens = min(request.max_new_tokens, 1 + STEPS_MOST)
    short = replace(request, max_new_tokens=new_tokens)

    def run(what: str, trace: LaneTimes | None = None, on_visit: OnVisit | None = None) -> Any:
        listening = cast(Trace | None, trace)
        generation = engine.generate(prompts, short, policy=policy, trace=listening, on_visit=on_visit)
        check_same_tokens(what, tokens, [output.token_ids for output in generation.outputs])
        return generation.stats

    operators, lanes = OperatorTimes(engine.backend, new_tokens), LaneTimes(new_tokens)
    with operators.watching():
        stats = run("a run with operators timed", on_visit=operators.on_visit)
        device_s = [operators.seconds(phase) for phase in (PREFILL, DECODE)]
    if any(any(kinds.values()) for kinds in stats.link_bytes.values()):
        run("a run with lanes timed", trace=lanes)
    passes = operators.passes
    parts = TimeParts.of(medians[0], device_s[PREFILL], lanes.waited_s(PREFILL))
    step = None
    if medians[1] is not None and passes:
        each = {kind: seconds / passes for kind, seconds in device_s[DECODE].items()}
        step = TimeParts.of(medians[1], each, lanes.waited_s(DECODE) / passes)
    return Breakdown(parts, step, passes, time.perf_counter() - began)
