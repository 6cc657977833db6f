"""Another engine's logits beside a reference's: where they differ, by how much, and whether rounding explains it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.check.findings import finite_or_none, times_its_bound
from flexref.check.logits_file import ArraysFile, StoredArray
from flexref.check.logits_reference import About, RowAbout, read_about
from flexref.errors import LogitsFileError, WrongCall, how_many

PIECE_BYTES = 1 << 25
"""Bounds the logits of one array that are held at a time, at least one position's."""


@dataclass(frozen=True, slots=True)
class Place:
    """One logit: after token number `position` of its row, that of `token_id`; `share` is error / bound.

    `error` and `share` are infinite where the other engine's is no finite number.
    """

    position: int
    token_id: int
    found: float
    needed: float
    bound: float

    @property
    def error(self) -> float:
        """How far it is off."""
        return abs(self.found - self.needed) if math.isfinite(self.found) else math.inf

    @property
    def share(self) -> float:
        """The same in multiples of the bound; infinite where the bound is 0 and the error is not."""
        if not self.error:
            return 0.0
        return self.error / self.bound if self.bound else math.inf

    def __str__(self) -> str:
        return (
            f"position {self.position}, token {self.token_id}: found {self.found:.9g}, needed {self.needed:.9g} within "
            f"{self.bound:.3g}, which is off by {times_its_bound(self.share)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name; null where one is infinite or no number."""
        values = {**asdict(self), "error": self.error, "share": self.share}
        return {name: finite_or_none(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """The first position of a row at which the greatest logit is another token's than in the reference.

    `gap`: by how much the reference prefers its token; `permitted`: up to which gap rounding may exchange them.
    """

    position: int
    token_id: int
    needed_token_id: int
    gap: float
    permitted: float

    @property
    def tie(self) -> bool:
        """Whether rounding may have decided."""
        return self.gap <= self.permitted

    def __str__(self) -> str:
        kind = "a tie" if self.tie else "not a tie"
        return (
            f"position {self.position}: token {self.token_id}, needed {self.needed_token_id}, {self.gap:.3g} apart; "
            f"{kind}: rounding permits {self.permitted:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {**asdict(self), "tie": self.tie}


@dataclass(slots=True)
class RowDifference:
    """One row: its worst logit, how many are beyond their bound, and where its greedy tokens part from the reference's.

    `rms_share`: the root mean square of error / bound over all logits, infinite if one is no finite number. `diverging`
    positions have another greedy token.
    """

    row: int
    about: RowAbout
    worst: Place | None = None
    largest_error: float = 0.0
    squares: float = 0.0
    count: int = 0
    outside: int = 0
    diverging: int = 0
    first_divergence: TokenDivergence | None = None

    @property
    def rms_share(self) -> float:
        """The typical share of the bound."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {
            "row": self.row,
            **asdict(self.about),
            "worst": None if self.worst is None else self.worst.to_json(),
            "largest_error": finite_or_none(self.largest_error),
            "rms_share": finite_or_none(self.rms_share),
            "outside": self.outside,
            "diverging": self.diverging,
            "first_divergence": None if self.first_divergence is None else self.first_divergence.to_json(),
        }


@dataclass(slots=True)
class LogitsDifference:
    """All rows, judged by the bounds of `dtype`."""

    about: About
    dtype: str
    rows: list[RowDifference] = field(default_factory=list)

    @property
    def worst(self) -> RowDifference:
        """The row with the worst logit."""
        return max(self.rows, key=lambda row: -1.0 if row.worst is None else row.worst.share)

    @property
    def within(self) -> bool:
        """Whether rounding explains every logit."""
        return not any(row.outside for row in self.rows)

    @property
    def fault(self) -> str | None:
        """The one line that says what is wrong; None if nothing is."""
        row = self.worst
        return None if self.within else f"the logits are not those of {self.about.model}: row {row.row}, {row.worst}"

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {
            "model": self.about.model,
            "checksum": self.about.checksum,
            "dtype": self.dtype,
            "within": self.within,
            "fault": self.fault,
            "worst_row": self.worst.row,
            "rows": [row.to_json() for row in self.rows],
        }


def compare_logits(
    reference: ArraysFile, theirs: ArraysFile, dtype: str, on_row: Callable[[int, int], None] = lambda done, total: None
) -> LogitsDifference:
    """Compare `logits_0`, `logits_1` ... of a file with a reference's, for an engine that stores as `dtype`.

    Each is (P, V) as the reference's is, or (S, V), of which the last P positions count, in float16, float32 or
    float64; `ids_N`, if there are, must be the reference's. `on_row` is told how many of how many rows are done. Raises
    `LogitsFileError` for a file that does not fit.
    """
    about = read_about(reference)
    if dtype not in about.dtypes:
        raise WrongCall(f"{reference.path}: has bounds for {', '.join(about.dtypes)}, none for {dtype}")
    expected = {f"logits_{row}" for row in range(len(about.rows))}
    for name in theirs.names:
        if name.startswith("logits_") and name not in expected:
            raise LogitsFileError(
                f"{theirs.path}: has an array {name!r:.40}, but the reference has "
                f"{how_many(len(about.rows), 'row')}, from 0 on"
            )
    found = LogitsDifference(about, dtype)
    for row, of_row in enumerate(about.rows):
        _check_ids(reference, theirs, row, of_row)
        difference = RowDifference(row, of_row)
        first = of_row.tokens - of_row.positions
        for exact, bound, other in _pieces(reference, theirs, row, about, dtype):
            _check_finite(reference.path, f"logits_{row}", exact, "a finite number")
            _check_finite(reference.path, f"bound_{dtype}_{row}", bound, "a finite number of at least 0", least=0.0)
            _note(difference, first, exact, bound, other)
            first += len(exact)
        found.rows.append(difference)
        on_row(row + 1, len(about.rows))
    return found


def _check_ids(reference: ArraysFile, theirs: ArraysFile, row: int, about: RowAbout) -> None:
    """`LogitsFileError` if the file says that its row is of other tokens."""
    name = f"ids_{row}"
    if name not in theirs.names:
        return
    ours = reference.whole(name, "i", about.tokens)
    found = theirs.whole(name, "iu", about.tokens + 1)
    if not np.array_equal(ours, found):
        here = np.flatnonzero(ours[: len(found)] != found[: len(ours)])
        place = int(here[0]) if here.size else min(len(ours), len(found))
        raise LogitsFileError(f"{theirs.path}: {name} are other tokens than the reference's, from number {place} on")


def _check_finite(path: str, name: str, values: npt.NDArray[Any], needed: str, least: float = -math.inf) -> None:
    """`LogitsFileError` if a reference holds what nothing can be judged by: any engine would be within it."""
    wrong = values[~(np.isfinite(values) & (values >= least))]
    if wrong.size:
        raise LogitsFileError(f"{path}: the array {name!r} holds {wrong[0]:.3g}, needed {needed} for every logit")


def _pieces(
    reference: ArraysFile, theirs: ArraysFile, row: int, about: About, dtype: str
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """(reference, bound, other) of some positions at a time, each (P, V) in float64."""
    of_row, width = about.rows[row], about.vocabulary
    shape = (of_row.positions, width)
    step = max(1, PIECE_BYTES // (8 * width))
    stored = [
        _expect(reference, f"logits_{row}", (shape,)),
        _expect(reference, f"bound_{dtype}_{row}", (shape,)),
        _expect(theirs, f"logits_{row}", (shape, (of_row.tokens, width))),
    ]
    before = stored[2].shape[0] - of_row.positions
    for first in range(0, before, step):
        stored[2].read(min(step, before - first))
    for first in range(0, of_row.positions, step):
        count = min(step, of_row.positions - first)
        yield tuple(array.read(count).astype(np.float64) for array in stored)
    for array in stored:
        array.end()


def _expect(file: ArraysFile, name: str, shapes: tuple[tuple[int, ...], ...]) -> StoredArray:
    """The array of this name, of one of these shapes."""
    stored = file.array(name)
    if stored.dtype.kind != "f" or stored.dtype.itemsize not in (2, 4, 8):
        raise LogitsFileError(
            f"{file.path}: the array {name!r} is of type {stored.dtype!s:.40}, needed float16, float32 or float64 "
            "(bfloat16 is saved as float32, which holds it exactly)"
        )
    if stored.shape not in shapes:
        needed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise LogitsFileError(f"{file.path}: the array {name!r} has shape {stored.shape!s:.80}, needed {needed}")
    return stored


def _note(
    row: RowDifference, first: int, exact: npt.NDArray[Any], bound: npt.NDArray[Any], other: npt.NDArray[Any]
) -> None:
    """Take in some positions (P, V), the first of which is number `first` of the row."""
    with np.errstate(all="ignore"):
        error = np.where(np.isfinite(other), np.abs(other - exact), np.inf)
        share = np.where(error > 0, error / bound, 0.0)
    row.squares, row.count = row.squares + float(np.square(share).sum()), row.count + share.size
    row.outside += int(np.count_nonzero(~(share <= 1)))
    row.largest_error = max(row.largest_error, float(error.max()))
    at = np.unravel_index(int(share.argmax()), share.shape)
    worst = Place(first + int(at[0]), int(at[1]), float(other[at]), float(exact[at]), float(bound[at]))
    if row.worst is None or worst.share > row.worst.share:
        row.worst = worst
    ours, theirs = exact.argmax(-1), np.where(np.isnan(other), -np.inf, other).argmax(-1)
    differing = np.flatnonzero(ours != theirs)
    row.diverging += len(differing)
    if differing.size and row.first_divergence is None:
        place = int(differing[0])
        pair = int(theirs[place]), int(ours[place])
        gap = float(exact[place, pair[1]] - exact[place, pair[0]])
        row.first_divergence = TokenDivergence(first + place, *pair, gap, float(bound[place, list(pair)].sum()))
