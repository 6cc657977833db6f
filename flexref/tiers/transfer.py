"""Explicit copies between neighbouring tiers, each counted; it knows bytes, not what they mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from flexref.backend.parts import Parts
from flexref.backend.protocol import Backend, Buffer
from flexref.units import LINK_OF, Kind, Tier, page_bytes

Bytes = npt.NDArray[np.uint8]


class DiskFile(Protocol):
    """A file that regions lie in, or who reads it and checks what comes."""

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` from `offset` on."""


class WritableFile(DiskFile, Protocol):
    """A file that copies may go to."""

    def write(self, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Write all of `source` at `offset`."""


@runtime_checkable
class FileOfPieces(WritableFile, Protocol):
    """A file of which several pieces may be read or written at a time: (offset, memory) of each.

    `done` is called when one has been, in their order. `direct`: it is written in whole pages.
    """

    @property
    def direct(self) -> bool: ...

    def read_pieces(self, pieces: Sequence[tuple[int, Bytes]], done: Callable[[], None]) -> None: ...

    def write_pieces(self, pieces: Sequence[tuple[int, Bytes]], done: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`nbytes` bytes on one tier: of a buffer of the port, or of a file."""

    tier: Tier
    place: Buffer | DiskFile
    offset: int
    nbytes: int

    def part(self, offset: int, nbytes: int) -> "Region":
        """Some of its bytes; asking beyond its end is a bug and raises."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise IndexError(f"bytes {offset} to {offset + nbytes} of a region of {self.nbytes}")
        return Region(self.tier, self.place, self.offset + offset, nbytes)


@dataclass(frozen=True, slots=True)
class Pieces:
    """That a copy has `count` pieces, each so many bytes after the one before it, in its source and in its target."""

    count: int
    source_stride: int
    target_stride: int


WHOLE = Pieces(1, 0, 0)
"""A copy in one piece."""


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Move all of `source` into `target`, which must be as long and one link away.

    With `pieces`, `source` and `target` are those of the first piece; with `parts`, these parts of both are moved.
    """

    kind: Kind
    what: str
    source: Region
    target: Region
    pieces: Pieces = WHOLE
    parts: Parts | None = None

    def __post_init__(self) -> None:
        if self.parts is None and self.source.nbytes != self.target.nbytes:
            raise ValueError(f"{self.what}: {self.source.nbytes} bytes do not fill {self.target.nbytes}")
        if (self.source.tier, self.target.tier) not in LINK_OF:
            raise ValueError(f"{self.what}: no link from {self.source.tier.value} to {self.target.tier.value}")

    @property
    def link(self) -> str:
        """The link it goes over."""
        return LINK_OF[self.source.tier, self.target.tier]

    @property
    def nbytes(self) -> int:
        """How much it moves."""
        return self.source.nbytes * self.pieces.count if self.parts is None else self.parts.nbytes

    @property
    def written_bytes(self) -> int:
        """How much a disk writes for it: whole pages, if the file is direct; 0 for a copy to memory."""
        target, pieces = self.target, self.pieces
        if target.tier is not Tier.DISK:
            return 0
        if not getattr(target.place, "direct", False):  # to ask whether it is a `FileOfPieces` takes 100 us
            return self.nbytes
        at, stride = target.offset, pieces.target_stride
        return sum(page_bytes(at + number * stride, target.nbytes) for number in range(pieces.count))


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows of `gathered_bytes` that the host gathers, with scattered reads of `nbytes` from disk among them."""

    kind: Kind
    what: str
    nbytes: int
    gathered_bytes: int
    call: Callable[[], None]

    @property
    def link(self) -> str:
        """The link it goes over."""
        return LINK_OF[Tier.DISK, Tier.HOST]


@dataclass(frozen=True, slots=True)
class Crossing:
    """`nbytes` of an operator's array that cross `link` between two operators."""

    kind: Kind
    what: str
    nbytes: int
    link: str


@dataclass(frozen=True, slots=True)
class HostOperators:
    """Operators that a lane calls on what lies on the host; nothing crosses a link."""

    what: str
    call: Callable[[], None]

    @property
    def link(self) -> str:
        """None."""
        return ""

    @property
    def nbytes(self) -> int:
        """It moves nothing."""
        return 0


Transfer = Copy | Gather | HostOperators
"""What a lane can be asked to do."""


def view(backend: Backend, region: Region, shape: tuple[int, ...], dtype: str, offset: int = 0) -> object:
    """Bytes of a region in memory, from `offset` on, as an array of the port."""
    return backend.view(region.place, region.offset + offset, shape, dtype)  # type: ignore[arg-type]


@runtime_checkable
class Borrower(Protocol):
    """A file that needs some host memory for itself."""

    def borrow(self, memory: Bytes) -> None:
        """Use this memory from now on."""


def lend(backend: Backend, memory: Region, home: Region) -> None:
    """Give the file that `home` lies in some host memory for its own use, if it is a file that needs any."""
    if isinstance(home.place, Borrower):
        home.place.borrow(host_bytes(backend, memory))


def host_bytes(backend: Backend, region: Region) -> npt.NDArray[np.uint8]:
    """The bytes of a host region, writable."""
    if region.tier is not Tier.HOST:
        raise ValueError(f"a region on {region.tier.value} has no host bytes")
    return backend.host_memory(region.place)[region.offset : region.offset + region.nbytes]  # type: ignore[arg-type]


@dataclass(slots=True)
class Flow:
    """What went over one link for one kind: bytes, copies, and the seconds that the copies took.

    `timed_bytes` and `timed_copies` are of the copies that have ended; for `written_bytes` see `Copy`.
    """

    nbytes: int = 0
    copies: int = 0
    seconds: float = 0.0
    timed_bytes: int = 0
    timed_copies: int = 0
    written_bytes: int = 0

    def add(self, more: "Flow") -> None:
        """Add what went over it at another time."""
        self.nbytes += more.nbytes
        self.copies += more.copies
        self.seconds += more.seconds
        self.timed_bytes += more.timed_bytes
        self.timed_copies += more.timed_copies
        self.written_bytes += more.written_bytes


@dataclass(frozen=True, slots=True)
class Done:
    """One finished copy or piece of host work, for traces: seconds of the port's clock.

    `purpose` is what it was submitted for, as whoever submitted it says.
    """

    lane: str
    what: str
    link: str
    nbytes: int
    start_s: float
    end_s: float
    purpose: object = None


@dataclass(slots=True)
class Traffic:
    """All copies so far by (link, kind), and a listener for each finished one.

    `lane_s`: seconds in which each lane was at work, and the operators' (`mover.COMPUTE`) of a port on the host's own
    processor. Those of other ports end later than their calls, and are timed for a trace alone. `unread_bytes` were
    counted and taken back; `in_vain_bytes` were read from disk for visits that never came.
    """

    flows: dict[tuple[str, str], Flow] = field(default_factory=dict)
    lane_s: dict[str, float] = field(default_factory=dict)
    on_done: Callable[[Done], None] | None = None
    unread_bytes: int = 0
    in_vain_bytes: int = 0

    def started(self, copy: "Transfer | Crossing") -> None:
        """Count a copy; operators move nothing."""
        if isinstance(copy, HostOperators):
            return
        flow = self.flows.setdefault((copy.link, copy.kind.value), Flow())
        flow.nbytes += copy.nbytes
        flow.copies += 1
        if isinstance(copy, Copy):
            flow.written_bytes += copy.written_bytes

    def finished(
        self, lane: str, copy: "Transfer | Crossing", span_s: tuple[float, float], purpose: object = None
    ) -> None:
        """Add the seconds of a copy, or of operators, from `span_s`: its start and end."""
        start_s, end_s = span_s
        if not isinstance(copy, HostOperators):
            flow = self.flows[copy.link, copy.kind.value]
            flow.seconds += end_s - start_s
            flow.timed_bytes += copy.nbytes
            flow.timed_copies += 1
        self.worked(str(lane), end_s - start_s)
        if self.on_done is not None:
            self.on_done(Done(str(lane), copy.what, copy.link, copy.nbytes, start_s, end_s, purpose))

    def unread(self, copy: Copy, came_bytes: int) -> None:
        """A copy that was counted is not made after all: only so many of its bytes have been read."""
        left = copy.nbytes - came_bytes
        self.unread_bytes += left
        flow = self.flows.get((copy.link, copy.kind.value))
        if flow is not None:  # else it belongs to an account that is closed
            flow.nbytes -= left
            flow.copies -= 1

    def worked(self, lane: str, seconds: float) -> None:
        """A lane, or the operators, was at work for so long."""
        self.lane_s[lane] = self.lane_s.get(lane, 0.0) + seconds

    def restart(self, on_done: Callable[[Done], None] | None = None) -> dict[tuple[str, str], Flow]:
        """Begin a new account, of which `on_done` hears; the one until now."""
        flows, self.flows, self.lane_s, self.on_done = self.flows, {}, {}, on_done
        self.unread_bytes = self.in_vain_bytes = 0
        return flows

    def since(self, earlier: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
        """Bytes per link and kind beyond those of an earlier `snapshot`."""
        table: dict[str, dict[str, int]] = {link: {} for link in LINK_OF.values()}
        for key, flow in sorted(self.flows.items()):
            before = earlier.get(key, 0)
            if flow.nbytes > before:
                table[key[0]][key[1]] = flow.nbytes - before
        return table

    def snapshot(self) -> dict[tuple[str, str], int]:
        """Bytes so far, for `since`."""
        return {key: flow.nbytes for key, flow in self.flows.items()}
