"""Times the links of a machine, each alone: copies to and from the device, a spill file, a weight file; no operator."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Buffer, HostWork, Lane, LaneStep, Move, Span, Ticket
from flexref.errors import StorageError
from flexref.machine.curves import Curve
from flexref.machine.machine import WEIGHT_FILE
from flexref.profile.meter import LEAST_S, Meter
from flexref.profile.operands import Memory, fill_bytes
from flexref.tiers.disk import SpillFile, WeightsOnDisk
from flexref.units import LINKS

Bytes = npt.NDArray[np.uint8]

COPIES_AT_ONCE_BYTES, COPIES_MOST, COPIES_LEAST = 16 << 20, 32, 4
"""Copies are timed back to back on their lane, as they come in a job: so many bytes, within these numbers of them."""

LONGEST_COPY_S = 0.1
"""A curve of copies ends where one takes longer."""

SUBMIT_S = 50e-6
"""More than it takes the host to submit one copy."""

ANOTHER_BYTES = 8 << 20
"""Of one write to a file that is not timed."""

DISK_REPEATS = 4
"""Windows of pieces of one size; fewer, where one piece is as long as all that may be moved."""


@dataclass(frozen=True, slots=True)
class Link:
    """One link at work: the lane it is on, and `count` steps of `nbytes` each."""

    lane: Lane
    steps: Callable[[int, int], Sequence[LaneStep]]


@dataclass(slots=True)
class Files:
    """A spill file, of which the first `written_bytes` were written, and a weight file of random bytes; see `files`."""

    directory: Path
    spill: SpillFile
    spill_bytes: int
    weights: WeightsOnDisk
    weights_bytes: int
    written_bytes: int = 0


@contextmanager
def files(meter: Meter, directory: str | Path) -> Iterator[Files]:
    """The two files in `directory`, gone at the end; `StorageError` if they cannot be written there.

    The spill file has room for all pieces of all sizes: as in a job, each is written where nothing was before.
    """
    sizes = meter.sizes
    spill_bytes = max(sizes.beside_disk_bytes, sum(max(size, sizes.disk_bytes) for size in sizes.spills))
    content = np.empty(sizes.file_bytes, np.uint8)
    fill_bytes(content)
    with closing(SpillFile(directory, spill_bytes)) as spill, closing(_weight_file(directory, content)) as weights:
        yield Files(Path(directory), spill, spill_bytes, weights, sizes.file_bytes)


def _weight_file(directory: str | Path, content: Bytes) -> WeightsOnDisk:
    """An open file with this content on the disk, whose name is gone already."""
    try:
        with tempfile.NamedTemporaryFile(prefix="flexref-profile-", dir=directory, buffering=0) as file:
            done = 0
            while done < content.nbytes:
                done += file.write(content[done:].data)
            os.fsync(file.fileno())
            return WeightsOnDisk(file.name)
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {error.strerror}") from error


@dataclass(slots=True)
class Places:
    """Where successive pieces start in `length` bytes, round and round: no piece finds its bytes in a cache."""

    length: int
    end: int = 0

    def take(self, nbytes: int) -> int:
        """The start of the next piece."""
        start = self.end if self.end + nbytes <= self.length else 0
        self.end = start + nbytes
        return start


def links_of(memory: Memory, found: Files, most_bytes: int) -> dict[str, Link]:
    """Every link (and the weight file) as steps for its lane, over buffers of `most_bytes` and over the two files.

    What is read of the spill file was written before, as long as anything was.
    """
    device, host = memory.buffer("device", most_bytes), memory.buffer("host", most_bytes)
    content = memory.backend.host_memory(host)
    fill_bytes(content)
    everything = Move("measuring", Span(host, 0, most_bytes), Span(device, 0, most_bytes))
    memory.submit(Lane.WEIGHTS_IN, [everything]).wait()
    spilling, reading = Places(found.spill_bytes), Places(found.weights_bytes)

    def read_back(nbytes: int) -> LaneStep:
        unspilling.length = max(nbytes, found.written_bytes)
        return work(LINKS[2], "cache", found.spill.read, unspilling.take(nbytes), nbytes)

    def spill(nbytes: int) -> LaneStep:
        at = spilling.take(nbytes)
        found.written_bytes = max(found.written_bytes, at + nbytes)
        return work(LINKS[3], "cache", found.spill.write, at, nbytes)

    def read(nbytes: int) -> LaneStep:
        return work(LINKS[2], "weights", found.weights.read, reading.take(nbytes), nbytes)

    def work(link: str, kind: str, call: Callable[[int, Bytes], None], at: int, nbytes: int) -> LaneStep:
        here = staging.take(nbytes)
        part = content[here : here + nbytes]
        return HostWork("measuring", lambda: call(at, part), kind, link, nbytes)

    unspilling, staging = Places(0), Places(most_bytes)
    return {
        LINKS[0]: Link(Lane.WEIGHTS_IN, _moves(host, device)),
        LINKS[1]: Link(Lane.CACHE_OUT, _moves(device, host)),
        LINKS[3]: Link(Lane.DISK_OUT, _each(spill)),
        LINKS[2]: Link(Lane.DISK_IN, _each(read_back)),
        WEIGHT_FILE: Link(Lane.DISK_IN, _each(read)),
    }


def _each(step: Callable[[int], LaneStep]) -> Callable[[int, int], Sequence[LaneStep]]:
    return lambda nbytes, count: [step(nbytes) for _ in range(count)]


def _moves(source: Buffer, target: Buffer) -> Callable[[int, int], Sequence[LaneStep]]:
    places = Places(source.nbytes)

    def move(nbytes: int) -> LaneStep:
        at = places.take(nbytes)
        return Move("measuring", Span(source, at, nbytes), Span(target, at, nbytes))

    return _each(move)


def link_seconds(meter: Meter, memory: Memory, link: Link, nbytes: int, count: int) -> float:
    """Seconds of one of `count` steps of `nbytes`, submitted one by one and run back to back.

    They are submitted while an asynchronous device is busy, so that the first has not ended when the last comes.
    """
    gate: tuple[Ticket, ...] = ()
    if meter.asynchronous:
        meter.keep_busy(SUBMIT_S * count)
        gate = (meter.backend.mark(),)
    tickets = [memory.submit(link.lane, [step], gate) for step in link.steps(nbytes, count)]
    tickets[-1].wait()
    return max(tickets[-1].times()[-1][1] - tickets[0].times()[0][0], LEAST_S) / count


def copy_curves(meter: Meter, found: Files) -> dict[str, Curve]:
    """Seconds of one copy by link, over its bytes."""
    sizes = meter.sizes
    curves = {}
    with meter.memory() as memory:
        room = min(memory.room_bytes("device"), memory.room_bytes("host"))
        copies = [size for size in sizes.copies if size <= room]
        most = min(room, max(sizes.linked_bytes, *copies, *sizes.spills, *sizes.reads))
        links = links_of(memory, found, most)
        for name, link in links.items():
            meter.tell(f"{name} copies" if name != WEIGHT_FILE else "reads of a weight file")
            wanted = {LINKS[2]: sizes.spills, LINKS[3]: sizes.spills, WEIGHT_FILE: sizes.reads}.get(name, copies)
            on_disk = link.lane in (Lane.DISK_IN, Lane.DISK_OUT)
            if name == LINKS[3]:
                _write_another(found)
            points: list[tuple[float, float]] = []
            for nbytes in wanted:
                if nbytes > most or (points and points[-1][1] > LONGEST_COPY_S):
                    break
                points.append((nbytes, _typical(meter, memory, (name, link), nbytes, on_disk)))
            curves[name] = Curve(tuple(points))
    return {name: curves[name] for name in (*LINKS, WEIGHT_FILE)}


def _write_another(found: Files) -> None:
    """Write another spill file as large, and drop it: memory of a virtual machine is slow when it is first used."""
    content = np.empty(min(found.spill_bytes, ANOTHER_BYTES), np.uint8)
    fill_bytes(content)
    with closing(SpillFile(found.directory, found.spill_bytes)) as another:
        for start in range(0, found.spill_bytes, content.nbytes):
            another.write(start, content[: found.spill_bytes - start])


def _typical(meter: Meter, memory: Memory, named: tuple[str, Link], nbytes: int, on_disk: bool) -> float:
    """Seconds of one copy: of the disk the median, of other links the mean over a while.

    What else works on a host, another guest of it say, slows its links for a tenth of a second now and then. A job is
    long enough to meet that, and so is this.
    """
    name, link = named
    label, sizes = f"{nbytes} bytes", meter.sizes
    if on_disk:
        pieces = max(1, sizes.disk_bytes // nbytes)
        repeats = min(DISK_REPEATS, pieces)
        return meter.median(
            name, label, [link_seconds(meter, memory, link, nbytes, pieces // repeats) for _ in range(repeats)]
        )
    count = max(COPIES_LEAST, min(COPIES_MOST, COPIES_AT_ONCE_BYTES // nbytes))
    link_seconds(meter, memory, link, nbytes, 1)
    values: list[float] = []
    while len(values) < sizes.repeats or sum(values) * count < sizes.sustained_s:
        values.append(link_seconds(meter, memory, link, nbytes, count))
    meter.median(name, label, values)
    return fmean(values)
