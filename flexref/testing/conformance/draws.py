"""What a clause draws, kept so that the same clause can be given it again; it knows no port and no file.

hypothesis' own choices are not kept: what they lead to differs from one of its versions to the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Lane
from flexref.backend.records import RecordLayout
from flexref.errors import FlexrefError
from flexref.json_types.values import shown
from flexref.testing.strategies import seeds

Values = npt.NDArray[Any]

DTYPES = ("float64", "float32", "float16", "int64", "int32", "uint8")
"""Types of arrays that are drawn."""

LARGEST_SEED, LARGEST_SIZE = (1 << 32) - 1, 1 << 14
"""Bound integers of a case: seeds, and all others, which are sizes, places and token ids. A clause that was given
larger ones would take all memory."""

LONGEST_TEXT, LONGEST_LIST, DEEPEST = 200, 1 << 16, 8
"""Bound texts, lists, and lists in lists of a case."""

LARGEST_LAYOUT = 1 << 10
"""Bounds heads, head widths and group sizes of a case's cache layout."""

GROUPED: Mapping[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "list": list, "set": set}
"""By their names in a case, kinds of sequences; sets have an order there."""


class CaseError(FlexrefError):
    """A case that is damaged, foreign, or of another version of its clause."""


class DrawsEnd(Exception):
    """A clause that is given draws again asks for more than there are: it has come further than when it failed."""


@dataclass(slots=True)
class DrawnValues:
    """The values that one run of a clause has drawn, in order: JSON values, and the arrays that these name."""

    values: list[Any] = field(default_factory=list)
    arrays: list[Values] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Keep one more value; `TypeError` for one that no case can hold: a clause then draws its number instead."""
        self.values.append(self._encoded(value))

    @property
    def size(self) -> int:
        """How large a case with it is, to find the smallest."""
        return len(repr(self.values)) + sum(array.size for array in self.arrays)

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Lane):
            return {"lane": value.value}
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return {"float": float(value).hex()}
        if isinstance(value, np.ndarray):
            self.arrays.append(value.copy())
            return {"array": len(self.arrays) - 1}
        if isinstance(value, RecordLayout):
            return {"layout": asdict(value)}
        for name, kind in (("tuple", tuple), ("list", list), ("set", set | frozenset)):
            if isinstance(value, kind):  # type: ignore[arg-type]
                return {name: [self._encoded(part) for part in (sorted(value) if name == "set" else value)]}
        raise TypeError(
            f"a clause drew {value!r:.80}, a {type(value).__name__}, which no case can hold: draw its number"
        )

    def decoded(self, number: int) -> Any:
        """The value that was drawn as `number`; `CaseError` for one that is none."""
        return self._decoded(self.values[number], f"draw {number}", 0)

    def _decoded(self, value: Any, what: str, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _bounded(value, what, len(value) <= LONGEST_TEXT)
        if isinstance(value, int):
            return _bounded(value, what, abs(value) <= LARGEST_SEED)
        if not isinstance(value, dict) or len(value) != 1 or depth > DEEPEST:
            raise CaseError(f"{what} is {shown(value)}, which no clause draws")
        ((kind, content),) = value.items()
        if kind in GROUPED and isinstance(content, list):
            parts = [
                self._decoded(part, what, depth + 1) for part in _bounded(content, what, len(content) <= LONGEST_LIST)
            ]
            return _hashed(parts, what) if kind == "set" else GROUPED[kind](parts)
        if kind == "array" and type(content) is int and 0 <= content < len(self.arrays):
            return self.arrays[content].copy()
        try:
            if kind == "lane":
                return Lane(content)
            if kind == "float":
                return float.fromhex(content)
            if kind == "layout":
                return _layout(content, what)
        except (TypeError, ValueError, OverflowError) as error:
            raise CaseError(f"{what} is {shown(value)}: {error}") from error
        raise CaseError(f"{what} is {shown(value)}, which no clause draws")


def _bounded(value: Any, what: str, is_bounded: bool) -> Any:
    if not is_bounded:
        raise CaseError(f"{what} is {shown(value)}, more than any clause draws")
    return value


def _hashed(parts: list[Any], what: str) -> set[Any]:
    if not all(isinstance(part, int | float | str) for part in parts):
        raise CaseError(f"{what} is a set of {shown(parts)}, which no clause draws")
    return set(parts)


def _layout(content: Any, what: str) -> RecordLayout:
    """A cache layout as large as those of small models."""
    sizes = ("heads", "head_width", "group_size")
    if not isinstance(content, dict) or content.keys() != {*sizes, "dtype", "scheme"}:
        raise CaseError(f"{what} is {shown(content)}, needed a cache layout")
    if not all(type(content[name]) is int and 1 <= content[name] <= LARGEST_LAYOUT for name in sizes):
        raise CaseError(f"{what} is {shown(content)}, needed {', '.join(sizes)} from 1 to {LARGEST_LAYOUT}")
    if content["dtype"] not in ("float32", "float16") or content["scheme"] not in ("none", "int4"):
        raise CaseError(f"{what} is {shown(content)}, needed a cache of float32 or float16, plain or int4")
    return RecordLayout(**content)


def _largest(value: Any) -> int:
    """The largest integer in a value, 0 if there is none."""
    if isinstance(value, tuple | list | set):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


class RecordedDraws:
    """hypothesis' `data` for one run of a clause: what is drawn is kept, and told of at once."""

    def __init__(self, data: Any, on_draw: Callable[[DrawnValues], None] | None = None) -> None:
        self._data, self._on_draw, self.drawn = data, on_draw, DrawnValues()

    def draw(self, strategy: Any, label: Any = None) -> Any:
        """What hypothesis draws."""
        value = self._data.draw(strategy, label)
        self.drawn.add(value)
        if self._on_draw is not None:
            self._on_draw(self.drawn)
        return value


class RepeatedDraws:
    """Stands in for hypothesis' `data`: it draws what was drawn before; `DrawsEnd` if more is asked for."""

    def __init__(self, drawn: DrawnValues) -> None:
        self._drawn, self._next = drawn, 0

    def draw(self, strategy: Any, label: Any = None) -> Any:
        """The next value."""
        if self._next >= len(self._drawn.values):
            raise DrawsEnd
        value = self._drawn.decoded(self._next)
        self._next += 1
        if strategy is not seeds and _largest(value) > LARGEST_SIZE:
            raise CaseError(f"draw {self._next - 1} is {shown(value)}, more than any clause draws")
        return value
