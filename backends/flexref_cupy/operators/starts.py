"""Where the records of a pass' rows start, as tables on the device that layers share; it knows no record and no kernel.

Rows of one home lie alike in every layer, so a table holds distances, from a place that is the handle's own. Between
rows whose home is the device and rows in a slot they differ from layer to layer: many such groups have more tables than
there are places for, and then take turns.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import SECTION_BYTES
from flexref_cupy.device import Device, SmallArray
from flexref_cupy.memory import Tensor

Distances = tuple[int, ...]
"""Three for each row, in bytes: where the record of its first token would be if all records were in its own array,
where the first record of its prefix is, and the prefix's tokens."""


class Starts:
    """One table, (B, 3), which is on the device while it has a place there."""

    __slots__ = ("__weakref__", "_array", "_device", "distances", "handles")

    def __init__(self, device: Device, distances: Distances) -> None:
        self._device, self.distances = device, distances
        self._array: SmallArray | None = None
        self.handles: WeakSet[Any] = WeakSet()
        """Handles whose rows lie so; `recordings` of each says how many recordings read the table where it is."""

    @property
    def small(self) -> SmallArray:
        """It, on the device, where it is now, for what is called next."""
        if self._array is None:
            self._array = self._device.small(np.array(self.distances, np.int64))
        return self._array

    def leave(self) -> None:
        """Give the place up, unless a recording needs it; the table comes back when it is needed."""
        if not any(handle.recordings for handle in self.handles):
            self._array = None

    def renew(self, distances: Distances) -> None:
        """Hold other distances, of as many rows, at the same place."""
        self.distances = distances
        if self._array is not None:
            self._device.renew_small(self._array, np.array(distances, np.int64))


class StartTables:
    """All tables that a handle has, each once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._found: WeakValueDictionary[Distances, Starts] = WeakValueDictionary()
        self._all: WeakSet[Starts] = WeakSet()
        device.when_small_is_full(self._make_room)

    def table(self, distances: Distances) -> Starts:
        """The table of these distances."""
        starts = self._found.get(distances)
        if starts is None:
            starts = self._found[distances] = Starts(self._device, distances)
            self._all.add(starts)
        return starts

    def renew(self, handles: Sequence[Any], distances: Distances) -> bool:
        """Let the table of these handles hold others; False if they have several, or share it with recorded ones.

        Handles that share it and are in no recording get a table of their own.
        """
        starts: Starts = handles[0].table
        others = set(starts.handles) - set(handles)
        if any(each.table is not starts for each in handles) or any(other.recordings for other in others):
            return False
        if self._found.get(starts.distances) is starts:
            del self._found[starts.distances]
        for other in others:
            other.move(self.table(starts.distances))
        starts.renew(distances)
        self._found.setdefault(distances, starts)
        return True

    def _make_room(self) -> None:
        for starts in list(self._all):
            starts.leave()


def distances_of(
    place: int, records: Sequence[Tensor], prefixes: Sequence[tuple[Any, int] | None] | None, record_bytes: int
) -> Distances:
    """How far from `place` rows lie. `ValueError` for records that no kernel could read."""
    distances: Distances = ()
    for row, prefix in zip(records, prefixes or [None] * len(records), strict=True):
        before, shared = (row, 0) if prefix is None else prefix
        if (row.address | before.address) % SECTION_BYTES:
            raise ValueError(f"records must start at multiples of {SECTION_BYTES} bytes")
        if shared % CHUNK_TOKENS:
            raise ValueError(f"a prefix is a multiple of {CHUNK_TOKENS} tokens, found {shared}")
        distances += (row.address - place - shared * record_bytes, before.address - place, shared)
    return distances
