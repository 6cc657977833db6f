"""Checks tokens that a run has given: rows that are drawn from it are recomputed, and each token must be possible.

What is checked is what was run: the rows' own tokens, the run's own weights, all layers. It knows no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from flexref.architecture.flops import prefill_flops
from flexref.architecture.spec import ModelSpec
from flexref.check.forced import forced_logits
from flexref.check.forced_walk import PortRounding, Read
from flexref.errors import FlexrefError
from flexref.json_types.containers import ListOf
from flexref.json_types.values import Number, Whole
from flexref.storage.weightfile import WeightFile

COMPUTATIONS = 2
"""A row is computed twice: exactly, and with random roundings."""

ROWS_MOST, FLOPS_WANTED, FLOPS_MOST = 4, 2e13, 1e14
"""Unless it is said how many, so many rows are checked, or as many as take 2e13 FLOPs. One row is checked even then if
it takes no more than 1e14."""

POSITIONS_MOST = 128
"""Of a row's tokens at most so many are compared, evenly drawn out: each takes a walk through the head's table."""

Ids = Sequence[int]


class WrongTokens(FlexrefError):
    """A run gave tokens that are not the model's."""


@dataclass(frozen=True, slots=True)
class TokensChecked:
    """Which tokens of a run were compared with a float32 computation of the same rows, and how close any came to wrong.

    `possible_tokens`: as many of the vocabulary would have passed at a place, on average; with 1 only the one token.
    """

    seed: Annotated[int, Whole(0), "Draws the rows that are checked, and the roundings."]
    rows: Annotated[tuple[int, ...], ListOf(Whole(0)), "The numbers of the rows, from 0."]
    tokens: Annotated[int, Whole(1), "Tokens that were compared."]
    other_tokens: Annotated[
        int, Whole(0), "Those that are not the most probable ones of the computation, but within what rounding permits."
    ]
    worst_share: Annotated[float, Number(0), "The greatest distance to the most probable one, as a share of that."]
    possible_tokens: Annotated[float, Number(1), "Tokens of the vocabulary that would have passed, on average."]


def rows_checked(spec: ModelSpec, lengths: Sequence[int], wanted: int | None, seed: int) -> tuple[int, ...]:
    """The numbers of the rows to check, drawn by `seed` from rows of so many tokens; `wanted` of them, or see above.

    None are checked if none is wanted, or if one row alone takes more than `FLOPS_MOST`.
    """
    drawn = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths)).tolist()
    if wanted is not None:
        return tuple(sorted(drawn[:wanted]))
    chosen: list[int] = []
    flops = 0.0
    for row in drawn[:ROWS_MOST]:
        flops += COMPUTATIONS * prefill_flops(spec, lengths[row])
        if flops > (FLOPS_WANTED if chosen else FLOPS_MOST):
            break
        chosen.append(row)
    return tuple(sorted(chosen))


def check_tokens(
    file: WeightFile,
    read: Read,
    prompts: Sequence[Ids],
    tokens: Sequence[Ids],
    rows: Sequence[int],
    how: tuple[PortRounding, int],
) -> TokensChecked:
    """Check the `tokens` of some `rows` of a greedy run after their `prompts`, on weights that `read` gives by name.

    `how`: what the port rounds, and the seed that `rows` were drawn by, of which there is at least one. Raises
    `WrongTokens`, which names the first wrong token of a row, and `FlexrefError` where nothing can be said.
    """
    rounding, seed = how
    count = others = 0
    worst, possible = 0.0, 0
    for row in rows:
        prompt, given = list(prompts[row]), list(tokens[row])
        _check_vocabulary(row, given, file.spec.vocabulary)
        some = np.unique(np.linspace(0, len(given) - 1, min(len(given), POSITIONS_MOST)).round().astype(np.int64))
        ids = [*prompt, *given[: int(some[-1])]]
        places = [len(prompt) - 1 + int(step) for step in some]
        found = forced_logits(file, read, ids, places, rounding, seed)
        best = found.logits.argmax(-1)
        for place, step in enumerate(some.tolist()):
            chosen, needed, bound = given[step], int(best[place]), found.bound[place]
            below = found.logits[place, needed] - found.logits[place]
            permitted = bound + bound[needed]
            if not np.isfinite(permitted).all():
                raise FlexrefError(
                    f"{file.path}: row {row}, new token {step}: what rounding permits is not finite in float32; "
                    "nothing can be compared with it"
                )
            passes = below <= permitted
            if not passes[chosen]:
                raise WrongTokens(
                    f"row {row}, new token {step}: the run gave token {chosen}, whose logit is {below[chosen]:.3g} "
                    f"below that of token {needed}, and rounding permits {permitted[chosen]:.3g} (in float32, after "
                    "the row's own tokens before it): the run computed something else and is no result"
                )
            if below[chosen] > 0:  # what a tie is permitted may be 0 as well
                worst = max(worst, float(below[chosen] / permitted[chosen]))
            others, count = others + (chosen != needed), count + 1
            possible += int(np.count_nonzero(passes))
    return TokensChecked(seed, tuple(rows), count, others, worst, possible / count)


def _check_vocabulary(row: int, given: Ids, vocabulary: int) -> None:
    """`WrongTokens` for a token that the model has not: a negative one would stand for another's logit."""
    for step, token in enumerate(given):
        if not 0 <= token < vocabulary:
            raise WrongTokens(
                f"row {row}, new token {step}: the run gave token {token}, and the model has {vocabulary}: it is no "
                "result"
            )
