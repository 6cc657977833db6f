"""Calls the operators of visits that come again and again, or replays them; handles that last for it; no operator."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flexref.backend.protocol import Backend
from flexref.block.watch import OnNotice
from flexref.errors import CapacityError, in_gib
from flexref.tiers.cache_plan import RowPass

KEPT_PASSES, TURNS = 16, 2
"""What so many passes have not asked for is given back. Slots take turns: what comes with every pass comes within two,
and keeps its room; what has not come for longer makes room for something else."""

Made = TypeVar("Made")

Key = tuple[Hashable, ...]
"""All that operators were called with, but what lies in arrays and in what handles stand for."""


def key_of(where: Hashable, group: int, tokens: int, held: Sequence[Any]) -> Key:
    """What tells one call of operators from others: where, of which group, for how many tokens, with which handles."""
    return where, group, tokens, *map(id, held)


@dataclass(slots=True)
class _Known:
    """Operators that were called with a key: in which pass last, and their recording, if there is one.

    held: the handles that the key names, which live as long as it does. too_large: there was no room for a recording.
    """

    held: Sequence[Any]
    used_in: int
    recording: Any = None
    too_large: bool = False

    @property
    def kept_passes(self) -> int:
        """Handles have places on the device: without a recording they are not kept longer than they may be needed."""
        return KEPT_PASSES if self.recording is not None or not self.held else TURNS


class Replays:
    """Operators by their keys: called directly the first time, recorded the second, and replayed from then on.

    What is certain to come can be recorded before (`prepare`).

    Once the device had no memory for a recording, all is called directly.
    """

    def __init__(self, backend: Backend, on: bool, tell: OnNotice | None = None) -> None:
        """`on`: whether anything is to be recorded; the port must be able to. `tell` hears why nothing is any more."""
        self.on = on and backend.caps.replays
        self._backend, self._tell = backend, tell
        self._known: dict[Key, _Known] = {}
        self._held_bytes = 0
        self._pass = -1
        self._told_large = False

    def begin_pass(self, number: int) -> None:
        """The pass begins: what has not come for long is given back."""
        if number == self._pass:
            return
        self._pass = number
        for key in [key for key, known in self._known.items() if known.used_in < number - known.kept_passes]:
            self._give_back(self._known.pop(key))

    def prepare(self, key: Key, held: Sequence[Any], operators: Callable[[], None]) -> None:
        """Record now what will be called with that key, and is not known yet."""
        if self.on and key not in self._known:
            known = self._known[key] = _Known(held, self._pass)
            self._record(known, operators)

    def has(self, key: Key) -> bool:
        """Whether a call with that key would be a replay."""
        known = self._known.get(key)
        return self.on and known is not None and known.recording is not None

    def call(self, key: Key, held: Sequence[Any], operators: Callable[[], None]) -> bool:
        """Run the operators, which are those of every call with that key. Whether it was a replay."""
        known = self._known.get(key)
        if known is None or not self.on:
            operators()
            if self.on:
                self._known[key] = _Known(held, self._pass)
            return False
        known.used_in = self._pass
        if known.recording is None and not known.too_large:
            self._record(known, operators)
        if known.recording is None or not self._replayed(known.recording):
            operators()
            return False
        return True

    def _record(self, known: _Known, operators: Callable[[], None]) -> None:
        """Record them, if there is room beside what else is recorded."""
        try:
            recording = self._backend.record(operators)
        except CapacityError as error:
            known.too_large = True
            self._tell_large(str(error))
            return
        room = self._backend.caps.recorded_bytes - recording.nbytes
        self._make_room(room)
        known.too_large = self._held_bytes > room
        if known.too_large:
            self._backend.forget(recording)
            room = self._backend.caps.recorded_bytes
            self._tell_large(f"a recording takes {in_gib(recording.nbytes)}, {in_gib(room)} are for all of them")
        else:
            known.recording = recording
            self._held_bytes += recording.nbytes

    def _tell_large(self, why: str) -> None:
        """Some operators are not recorded, as a person should know once: the job is slower for it."""
        if self._tell is not None and not self._told_large:
            self._told_large = True
            self._tell(f"operators that find no room among the recorded ones are called one by one: {why}")

    def _make_room(self, left_bytes: int) -> None:
        """Give back what has not come for a while, the least recent first, until no more than that is held."""
        others = [known for known in self._known.values() if known.recording and known.used_in < self._pass - TURNS]
        for known in sorted(others, key=lambda known: known.used_in):
            if self._held_bytes <= left_bytes:
                return
            self._give_back(known)

    def _replayed(self, recording: Any) -> bool:
        """Replay it; if the device has no memory for that, nothing is recorded any more."""
        try:
            self._backend.replay(recording)
        except CapacityError as error:
            self._stop(error)
            return False
        return True

    def giving_way(self, make: Callable[[], Made]) -> Made:
        """What `make` gives, for which the device needs room; if recordings take it, nothing is recorded any more."""
        try:
            return make()
        except CapacityError as error:
            if not self.on:
                raise
            self._stop(error)
        return make()

    def _stop(self, error: CapacityError) -> None:
        """Record nothing any more, give back what was recorded, and tell why."""
        self.on = False
        self.release()
        if self._tell is not None:
            self._tell(f"operators are called one by one from here on: {error}")

    def _give_back(self, known: _Known) -> None:
        if known.recording is not None:
            self._held_bytes -= known.recording.nbytes
            self._backend.forget(known.recording)
            known.recording = None

    def release(self) -> None:
        """Give all of it back."""
        for known in self._known.values():
            self._give_back(known)
        self._known.clear()


@dataclass(frozen=True, slots=True)
class FedLengths:
    """What a pass has of `rows`: handles of the lengths of those that the device reaches, and of the others; or None.

    near_tokens: new tokens of the former, which come first.
    """

    rows: Sequence[RowPass]
    near: Any
    away: Any
    near_tokens: int

    @property
    def decodes(self) -> bool:
        """Whether one token is fed of every row, and the device reaches all of them."""
        return self.away is None and self.near_tokens == len(self.rows)

    def renewed(self, be: Backend, rows: Sequence[RowPass]) -> "FedLengths | None":
        """Those of a later pass that `decodes` as this one does, with the same handle; None if that does not serve."""
        if not be.renew_segments(self.near, [row.past for row in rows], [1] * len(rows)):
            return None
        return FedLengths(rows, self.near, None, len(rows))

    @classmethod
    def of(cls, be: Backend, rows: Sequence[RowPass], near_rows: int, last: Any) -> "FedLengths":
        """Those of `rows`, of which the device reaches the first; with the `last` handle of such lengths, renewed, if
        it serves.
        """
        near, away = rows[:near_rows], rows[near_rows:]
        past, new = [row.past for row in near], [row.new for row in near]
        if near and last is not None and be.renew_segments(last, past, new):
            handle = last
        else:
            handle = be.segments(past, new) if near else None
        others = be.segments([row.past for row in away], [row.new for row in away]) if away else None
        return cls(rows, handle, others, sum(new))
