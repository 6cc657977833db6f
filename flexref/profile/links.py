"""Times every link of a machine alone: copies to and from the device, spill file, weight file; it knows no operator."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Buffer, HostWork, Lane, LaneStep, Move, Span, Ticket
from flexref.errors import StorageError
from flexref.machine.curves import Curve
from flexref.machine.machine import WEIGHT_FILE
from flexref.machine.plain import plain_machine
from flexref.profile.meter import Meter
from flexref.profile.operands import Memory, fill_bytes
from flexref.profile.record import LEAST_S
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.spill_file import SpillFile
from flexref.units import LINKS

Bytes = npt.NDArray[np.uint8]

COPIES_AT_ONCE_BYTES, COPIES_MOST, COPIES_LEAST = 16 << 20, 32, 4
"""Copies are timed back to back on their lane, as they run in a job: about 16 MiB in all, in 4 to 32 copies."""

LEAST_COPIES = 1 + COPIES_LEAST
"""What one size of a copy takes at least, in copies."""

LEAST_LINKED_BYTES = 16 << 20
"""Copies of a link go round and round over no fewer bytes, however little time there is to fill them."""

LONGEST_COPY_S = 0.1
"""A curve of copies ends after the first that takes longer."""

LONG_S = 0.5
"""Copies that are timed for at least so long meet what slows a link now and then about as often as a job does."""

SUBMIT_S = 50e-6
"""More than the host needs to submit one copy."""

ANOTHER_BYTES = 8 << 20
"""Bytes of one write to the file that is not timed."""

DISK_REPEATS = 4
"""Repeats at every size on disk; fewer where one piece is already all that may be moved."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link: its lane, and `steps(nbytes, count)`, which makes `count` steps of `nbytes` each for that lane."""

    lane: Lane
    steps: Callable[[int, int], Sequence[LaneStep]]


@dataclass(slots=True)
class Files:
    """A spill file, written up to `written_bytes`, and a weight file of random bytes, both in `directory`."""

    directory: Path
    spill: SpillFile
    spill_bytes: int
    weights: WeightsOnDisk
    weights_bytes: int
    written_bytes: int = 0


@contextmanager
def files(meter: Meter, directory: str | Path) -> Iterator[Files | None]:
    """Make both files in `directory`, and remove them at the end; None, with a warning, if they cannot be written.

    A full disk hinders no job that needs none: it is given the rates of a plain machine (`machine.plain`).
    The spill file has room for the pieces of all sizes, so that each is written where nothing was before, as in a job.
    """
    sizes = meter.sizes
    spill_bytes = max(sizes.beside_disk_bytes, sum(max(size, sizes.disk_bytes) for size in sizes.spills))
    content = np.empty(sizes.file_bytes, np.uint8)
    fill_bytes(content)
    with ExitStack() as stack:
        try:
            spill = stack.enter_context(closing(SpillFile(directory, spill_bytes)))
            weights = stack.enter_context(closing(_weight_file(directory, content)))
        except StorageError as error:
            meter.record.assume("the disk was not measured", str(error))
            yield None
            return
        yield Files(Path(directory), spill, spill_bytes, weights, sizes.file_bytes)


def _weight_file(directory: str | Path, content: Bytes) -> WeightsOnDisk:
    """An open file with this content, written through to the disk. Its name is removed at once."""
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
    """Gives successive pieces their places in `length` bytes, from the start again at the end.

    A piece is thus not where the last one was, and its bytes are not in a processor's cache.
    """

    length: int
    end: int = 0

    def take(self, nbytes: int) -> int:
        """The start of the next piece."""
        start = self.end if self.end + nbytes <= self.length else 0
        self.end = start + nbytes
        return start


def links_of(memory: Memory, found: Files | None, most_bytes: int) -> dict[str, Link]:
    """The four links and the weight file by name, over two buffers of `most_bytes` and the files of `found`.

    The spill file is read only where it has been written, so it must be written first. Without files there are the
    links to the device alone.
    """
    device, host = memory.buffer("device", most_bytes), memory.buffer("host", most_bytes)
    content = memory.backend.host_memory(host)
    fill_bytes(content)
    everything = Move("measuring", Span(host, 0, most_bytes), Span(device, 0, most_bytes))
    memory.submit(Lane.WEIGHTS_IN, [everything]).wait()
    links = {
        LINKS[0]: Link(Lane.WEIGHTS_IN, _moves(host, device)),
        LINKS[1]: Link(Lane.CACHE_OUT, _moves(device, host)),
    }
    if found is None:
        return links
    return {**links, **_disk_links(content, found)}


def _disk_links(content: Bytes, found: Files) -> dict[str, Link]:
    """The links to the disk, and the weight file, which fill `content` or take its bytes."""
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

    unspilling, staging = Places(0), Places(content.nbytes)
    return {
        LINKS[3]: Link(Lane.DISK_OUT, _each(spill)),
        LINKS[2]: Link(Lane.DISK_IN, _each(read_back)),
        WEIGHT_FILE: Link(Lane.DISK_IN, _each(read)),
    }


def _each(step: Callable[[int], LaneStep]) -> Callable[[int, int], Sequence[LaneStep]]:
    """`count` steps of `nbytes`, each made by `step`."""
    return lambda nbytes, count: [step(nbytes) for _ in range(count)]


def _moves(source: Buffer, target: Buffer) -> Callable[[int, int], Sequence[LaneStep]]:
    """Moves from `source` to `target`, each at the next place of both."""
    places = Places(source.nbytes)

    def move(nbytes: int) -> LaneStep:
        at = places.take(nbytes)
        return Move("measuring", Span(source, at, nbytes), Span(target, at, nbytes))

    return _each(move)


def link_seconds(meter: Meter, memory: Memory, link: Link, nbytes: int, count: int) -> float:
    """Seconds of one step, from `count` steps of `nbytes` that run back to back.

    On an asynchronous port they are submitted while a product keeps the device busy, so that the lane never waits for
    the host.
    """
    gate: tuple[Ticket, ...] = ()
    if meter.asynchronous:
        meter.keep_busy(SUBMIT_S * count)
        gate = (meter.backend.mark(),)
    tickets = [memory.submit(link.lane, [step], gate) for step in link.steps(nbytes, count)]
    tickets[-1].wait()
    return max(tickets[-1].times()[-1][1] - tickets[0].times()[0][0], LEAST_S) / count


def copy_curves(meter: Meter, found: Files | None) -> dict[str, Curve]:
    """Measure the seconds of one copy over its bytes, for every link and the weight file; see `files`."""
    sizes = meter.sizes
    curves = dict(plain_machine().copies)
    with meter.memory() as memory:
        room = min(memory.room_bytes("device"), memory.room_bytes("host"))
        copies = [size for size in sizes.copies if size <= room]
        most = min(
            room, max(meter.timely(sizes.linked_bytes, LEAST_LINKED_BYTES), copies[0], *sizes.spills, *sizes.reads)
        )
        links = links_of(memory, found, most)
        for name in meter.pace.parts(tuple(links), [1 if "disk" in name or "file" in name else 3 for name in links]):
            link = links[name]
            meter.tell(f"{name} copies" if name != WEIGHT_FILE else "reads of a weight file")
            wanted = {LINKS[2]: sizes.spills, LINKS[3]: sizes.spills, WEIGHT_FILE: sizes.reads}.get(name, copies)
            on_disk = link.lane in (Lane.DISK_IN, Lane.DISK_OUT)
            if name == LINKS[3] and found is not None:
                _write_another(found)
            points: list[tuple[float, float]] = []
            for nbytes in meter.pace.parts(wanted):
                if points and points[-1][1] > LONGEST_COPY_S:
                    break
                late = points and not meter.pace.has(LEAST_COPIES * points[-1][1] * nbytes / points[-1][0])
                if nbytes > most or late:
                    if nbytes in copies:
                        meter.record.cut(name, f"{points[-1][0]:.0f} bytes")
                    break
                points.append((nbytes, _typical(meter, memory, (name, link), nbytes, on_disk)))
            curves[name] = Curve(_rising(points))
    return {name: curves[name] for name in (*LINKS, WEIGHT_FILE)}


def _rising(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points of a curve, none with more seconds than one of more bytes: a copy of these has copied fewer, too."""
    rising, least_s = list[tuple[float, float]](), float("inf")
    for nbytes, seconds in reversed(points):
        least_s = min(least_s, seconds)
        rising.append((nbytes, least_s))
    return tuple(reversed(rising))


def _write_another(found: Files) -> None:
    """Write a spill file of the same size and drop it: a virtual machine's memory is slow the first time it is used."""
    content = np.empty(min(found.spill_bytes, ANOTHER_BYTES), np.uint8)
    fill_bytes(content)
    # Where there is no room for two of them it is left out.
    with suppress(StorageError), closing(SpillFile(found.directory, found.spill_bytes)) as another:
        for start in range(0, found.spill_bytes, content.nbytes):
            another.write(start, content[: found.spill_bytes - start])


def _typical(meter: Meter, memory: Memory, named: tuple[str, Link], nbytes: int, on_disk: bool) -> float:
    """Seconds of one copy: for links to the disk the median, for all others the mean over `sustained_s`.

    Other work on the host, another virtual machine's for example, slows its links for a tenth of a second now and then.
    A job is long enough to meet such moments, so they must count, and a median would hide them. Where less than
    `LONG_S` is measured it is the median all the same: one such moment would count for many times what it is in a job.
    """
    name, link = named
    label, sizes = f"{nbytes} bytes", meter.sizes
    if on_disk:
        pieces = max(1, sizes.disk_bytes // nbytes)
        repeats = min(DISK_REPEATS, pieces)
        values = [link_seconds(meter, memory, link, nbytes, pieces // repeats)]
        while len(values) < repeats and meter.pace.has(values[-1] * (pieces // repeats)):
            values.append(link_seconds(meter, memory, link, nbytes, pieces // repeats))
        return meter.record.figure(name, label, values, nbytes)
    count = max(COPIES_LEAST, min(COPIES_MOST, COPIES_AT_ONCE_BYTES // nbytes))
    single_s = link_seconds(meter, memory, link, nbytes, 1)
    if not meter.pace.has(count * single_s):
        meter.record.cut(name, label)
        return single_s
    values, begin = [], meter.clock()
    while len(values) < sizes.repeats or meter.clock() - begin < sizes.sustained_s:
        values.append(link_seconds(meter, memory, link, nbytes, count))
        if not meter.pace.has(values[-1] * count):
            break
    measured_s, middle = meter.clock() - begin, meter.record.figure(name, label, values)
    return fmean(values) if measured_s >= LONG_S else middle
