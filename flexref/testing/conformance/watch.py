"""Watches what a clause calls of a port and what is compared, without touching either; it knows no law.

Every method of the protocol is watched, as the protocol lists them. Calls that only place a clause's operands and read
its results, those of `testing.bench`, are not the clause's own.
"""

import inspect
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexref.backend.protocol import Backend, QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.check.tolerances import WITNESS, Numbers, Values
from flexref.testing import bench, lane_steps

METHODS: Mapping[str, inspect.Signature] = {
    name: inspect.signature(member)
    for part in Backend.__mro__
    if part.__module__.startswith("flexref.")
    for name, member in vars(part).items()
    if inspect.isfunction(member) and not name.startswith("_")
}
"""Every method of the protocol in its order, which is the one in which a port is written; then those of its bases."""

PLACING = frozenset({bench.__file__, lane_steps.__file__})
"""Calls from these files are not a clause's own."""

FIRST_LENGTH = 1
"""An array with so many rows is an edge."""


@dataclass(slots=True)
class MethodUse:
    """What clauses have made of one method: calls, their seconds on the host, types and edges of their arguments.

    `own_calls`: those that are not there to place operands and to read results; all but `calls` is of these.
    `worst_share`: the largest error of a result as a share of its computed bound; None where nothing has a bound.
    """

    calls: int = 0
    own_calls: int = 0
    seconds: float = 0.0
    worst_share: float | None = None
    dtypes: set[str] = field(default_factory=set)
    edges: set[str] = field(default_factory=set)


class WatchedPort:
    """A port whose methods are called through; what they are given and give stays as it is."""

    def __init__(self, port: Backend, named: frozenset[str] = frozenset()) -> None:
        """`named`: methods that the clause's law names; they are its own, whoever calls them for it."""
        self.port, self.uses, self._named = port, dict[str, MethodUse](), named
        self.name, self.caps = port.name, port.caps
        self.last: str | None = None
        """The clause's own call that came last."""
        self.raising: str | None = None
        """The call that raised last, the clause's own or not."""
        self.missing: str | None = None
        """The first call of a method that is not written."""
        self._handles: dict[int, tuple[Any, set[str]]] = {}
        self._thread = threading.current_thread()

    def begin(self) -> None:
        """A new example: nothing has been called."""
        self.last = self.raising = self.missing = None
        self._handles.clear()

    def __getattr__(self, name: str) -> Any:
        """A method of the protocol, watched; anything else as the port has it."""
        member = getattr(self.port, name)
        if name not in METHODS:
            return member

        def called(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not self._thread:  # on a lane, beside what is looked at here
                return member(*arguments, **named)
            is_own = name in self._named or sys._getframe(1).f_code.co_filename not in PLACING
            self._call(name)
            if is_own:
                self._note(name, arguments, named)
            began = time.perf_counter()
            try:
                result = member(*arguments, **named)
            except BaseException as error:
                self._raised(name, error)
                raise
            if is_own:
                self.uses[name].seconds += time.perf_counter() - began
                self._remember(name, arguments, named, result)
            return result

        return called

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Comparisons meanwhile belong to the clause's own call before them."""
        token = WITNESS.set(self._compared)
        try:
            yield
        finally:
            WITNESS.reset(token)

    def _compared(self, actual: Values, expected: Numbers, bound: Numbers) -> None:
        if self.last is not None:
            use = self.uses[self.last]
            use.worst_share = max(use.worst_share or 0.0, share_of_bound(actual, expected, bound))

    def _call(self, name: str) -> None:
        """A call, whoever makes it."""
        self.uses.setdefault(name, MethodUse()).calls += 1

    def _raised(self, name: str, error: BaseException) -> None:
        """A call that raised."""
        self.raising = name
        if isinstance(error, NotImplementedError) and self.missing is None:
            self.missing = name

    def _note(self, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A call of the clause's own, before it."""
        self.last, use = name, self.uses[name]
        use.own_calls += 1
        for what, value in self._bound(name, arguments, named):
            dtypes, edges = self._seen(what, value)
            use.dtypes |= dtypes
            use.edges |= edges

    def _bound(self, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """(name, value) of what was given, without `self`; a call that the port itself must refuse has none."""
        try:
            return list(METHODS[name].bind(None, *arguments, **named).arguments.items())[1:]
        except TypeError:
            return []

    def _seen(self, what: str, value: Any) -> tuple[set[str], set[str]]:
        """The types and the edges that an argument covers."""
        if id(value) in self._handles:
            return set(), self._handles[id(value)][1]
        if isinstance(value, QuantizedMatrix):
            short = {"a short last group"} if value.width % value.group_size else set()
            return {f"int{value.bits}/{dtype_of(value.scale)}"}, short
        if isinstance(value, RecordLayout):
            return {"int4 records" if value.quantized else f"{value.dtype} records"}, set()
        if value is None:
            return set(), {f"no {what}"}
        if value is True:
            return set(), {what}
        if isinstance(value, str):
            return set(), {str(value)}
        if isinstance(value, int | float):
            return set(), {f"{what} 0"} if value == 0 else set()
        return _array_seen(what, value)

    def _remember(self, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> None:
        """What stands for the arguments of a call is told of where it is used."""
        if name not in ("cache_rows", "segments"):
            return
        given = dict(self._bound(name, arguments, named))
        if name == "cache_rows":
            edges = {next(iter(self._seen("layout", given["layout"])[0]))} if "layout" in given else set()
            if given.get("prefixes") is not None:
                edges.add("prefixes")
            self._handles[id(result)] = result, edges
        elif {"past", "new"} <= given.keys():
            self._handles[id(result)] = result, _lengths_seen(given["past"], given["new"])


def _lengths_seen(past: Any, new: Any) -> set[str]:
    edges = {"no past" if not any(past) else "a past", "new tokens" if max(new, default=0) > 1 else "one new token"}
    if len(set(past)) > 1 or len(set(new)) > 1:
        edges.add("rows of different lengths")
    return edges


def _array_seen(what: str, value: Any) -> tuple[set[str], set[str]]:
    shape, dtype = getattr(value, "shape", None), dtype_of(value)
    edges = set()
    if shape and len(shape) > 1:
        if shape[0] == FIRST_LENGTH:
            edges.add(f"{what} of one row")
        if getattr(getattr(value, "flags", None), "c_contiguous", True) is False:
            edges.add(f"{what} in a wider array")
    return {dtype} if dtype else set(), edges


def named_in(law: str) -> frozenset[str]:
    """The methods of the protocol that a clause's law names."""
    return frozenset(METHODS).intersection(re.findall(r"`(\w+)", law))


def method_law(name: str) -> str:
    """The protocol's words on a method, its first paragraph in one line."""
    return " ".join(str(getattr(Backend, name).__doc__).strip().partition("\n\n")[0].split())


def dtype_of(value: Any) -> str:
    """The type of a port's array by its name, if it tells it: the protocol asks for no such property."""
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def share_of_bound(actual: Values, expected: Numbers, bound: Numbers) -> float:
    """The largest |actual - expected| as a share of its bound; infinite where the bound is 0 and the error is not."""
    if actual.shape != expected.shape or not actual.size:
        return 0.0 if actual.shape == expected.shape else float("inf")
    with np.errstate(all="ignore"):
        error = np.abs(actual.astype(np.float64) - expected)
        share = np.where(error == 0, 0.0, error / np.broadcast_to(bound, expected.shape))
    return float(np.where(np.isnan(share), np.inf, share).max())
