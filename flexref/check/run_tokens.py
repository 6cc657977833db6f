"""Checks tokens that a run has given: rows that are drawn from it are recomputed, and each token must be possible.

What is checked is what was run: the rows' own tokens, the run's own weights, all layers. It knows no engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from flexref.architecture.flops import prefill_flops
from flexref.architecture.spec import ModelSpec
from flexref.check.forced.logits import Drawing, ForcedRow, forced_logits, together
from flexref.check.forced.products import Read, product_rate
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

BESIDE_PRODUCTS = 1.5
"""Seconds of a whole check beside those of its products alone: measured 1.4, see bench/README."""

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


@dataclass(frozen=True, slots=True)
class CheckingWork:
    """What checking some rows takes: `layers` walked, each for the rows of one run; `seconds`, predicted, on all cores.

    The prediction is `flops` at the rate of this machine's products, and as much again as all else takes beside them.
    """

    layers: int
    flops: float
    seconds: float


def work_of(spec: ModelSpec, rows: Sequence[ForcedRow]) -> CheckingWork:
    """What `forced_logits` of the rows will take; measures the machine's products, some hundredths of a second."""
    flops = sum(COMPUTATIONS * prefill_flops(spec, len(row.token_ids)) for row in rows)
    return CheckingWork(len(together(rows)) * spec.layers, flops, BESIDE_PRODUCTS * flops / product_rate())


def forced_rows(prompts: Sequence[Ids], tokens: Sequence[Ids], rows: Sequence[int], vocabulary: int) -> list[ForcedRow]:
    """Some `rows` of a run, with the places of the tokens that are compared; `WrongTokens` for impossible ones."""
    found = []
    for row in rows:
        prompt, given = list(prompts[row]), list(tokens[row])
        _check_vocabulary(row, given, vocabulary)
        some = _compared(len(given))
        found.append(ForcedRow([*prompt, *given[: some[-1]]], [len(prompt) - 1 + step for step in some]))
    return found


def check_tokens(
    file: WeightFile,
    read: Read,
    prompts: Sequence[Ids],
    tokens: Sequence[Ids],
    rows: Sequence[int],
    how: Drawing,
    on_layer: Callable[[], object] = lambda: None,
) -> TokensChecked:
    """Check the `tokens` of some `rows` of a greedy run after their `prompts`, on weights that `read` gives by name.

    `how`: what the port rounds, and the seed that `rows` were drawn by, of which there is at least one; `on_layer` is
    called as often as `work_of` says. Raises `WrongTokens`, which names the first wrong token of a row, and
    `FlexrefError` where nothing can be said.
    """
    count = others = 0
    worst, possible = 0.0, 0
    wanted = forced_rows(prompts, tokens, rows, file.spec.vocabulary)
    for row, found in zip(rows, forced_logits(file, read, wanted, how, on_layer), strict=True):
        given = list(tokens[row])
        best = found.logits.argmax(-1)
        for place, step in enumerate(_compared(len(given))):
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
    return TokensChecked(how.seed, tuple(rows), count, others, worst, possible / count)


def _compared(count: int) -> list[int]:
    """The steps whose tokens are compared, of so many."""
    some = np.unique(np.linspace(0, count - 1, min(count, POSITIONS_MOST)).round().astype(np.int64))
    return [int(step) for step in some]


def _check_vocabulary(row: int, given: Ids, vocabulary: int) -> None:
    """`WrongTokens` for a token that the model has not: a negative one would stand for another's logit."""
    for step, token in enumerate(given):
        if not 0 <= token < vocabulary:
            raise WrongTokens(
                f"row {row}, new token {step}: the run gave token {token}, and the model has {vocabulary}: it is no "
                "result"
            )
