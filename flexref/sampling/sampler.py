"""The next token of every row of a group: settings and uniform numbers brought to a port's one sampling operator."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flexref.sampling.settings import SamplingSettings
from flexref.sampling.uniforms import Numbers, uniforms

if TYPE_CHECKING:
    from flexref.backend.protocol import Array, Backend


def choose(
    backend: "Backend", logits: "Array", settings: Sequence[SamplingSettings], rows: Numbers, steps: Numbers
) -> npt.NDArray[np.int64]:
    """logits (B, V) -> token ids (B,) on the host, each row by its own of the B settings.

    `rows` (B,) are the rows' numbers in the input, `steps` (B,) how many tokens each has generated so far: with the
    seed they alone decide where a row's draw falls, so that a row may be sampled in any group and in any order.
    Neighbours with the same settings are chosen in one call. Raises `FlexrefError` if logits are not finite.
    """
    if not len(rows) == len(settings) == logits.shape[0]:
        raise ValueError(
            f"sampling got {logits.shape[0]} rows of logits for {len(rows)} rows, {len(settings)} settings"
        )
    chosen, first = np.empty(len(rows), np.int64), 0
    for rule, neighbours in groupby(settings, key=_rule):
        draws = _draws(list(neighbours), rows[first:], steps[first:])
        last = first + len(draws)
        chosen[first:last] = backend.sample(logits[first:last], *rule, draws)
        first = last
    return chosen


def choose_ahead(
    backend: "Backend",
    logits: "Array",
    settings: Sequence[SamplingSettings],
    rows: Numbers,
    steps: Numbers,
    out: "Array",
) -> Callable[[], npt.NDArray[np.int64]]:
    """As `choose`, of rows that are `alike`: the ids are in `out` (B,) for the operators that are called next, and what
    it returns waits for them.
    """
    return backend.sample_ahead(logits, *_rule(settings[0]), _draws(settings, rows, steps), out)


def alike(settings: Sequence[SamplingSettings]) -> bool:
    """Whether rows of these settings are chosen for in one call."""
    rule = _rule(settings[0])
    return all(_rule(each) == rule for each in settings)


def _rule(settings: SamplingSettings) -> tuple[float, int, float]:
    """What one call of the operator takes for all of its rows."""
    return settings.temperature, settings.top_k, settings.top_p


def _draws(settings: Sequence[SamplingSettings], rows: Numbers, steps: Numbers) -> npt.NDArray[np.float64]:
    """The uniform number of each of the rows that `settings` are of: zeros where nothing is random."""
    draws, first = np.zeros(len(settings)), 0
    for seed, alike in groupby(settings, key=lambda each: None if each.greedy else each.seed):
        last = first + sum(1 for _ in alike)
        if seed is not None:
            draws[first:last] = uniforms(seed, rows[first:last], steps[first:last])
        first = last
    return draws
