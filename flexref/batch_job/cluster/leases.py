"""Who works on which lines: chunks are leased to workers, and leased again if a worker is lost; it knows no network.

Every line that was read is at any time in one place: in a chunk that waits, in one that is leased, or answered. What
workers do, and when they come and go, changes neither which lines are answered nor how often: once.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from flexref.batch_job.answers import Line
from flexref.batch_job.shard import CHUNK_LINES
from flexref.errors import BatchError, how_many

DEPTH = 2
"""Chunks that a worker has at a time: one that it works on, and one that lies there when that has ended."""

LEAST_LINES = 16
"""Of a chunk at the end of a job: fewer leave an engine's block empty, more make the others wait for the last one."""

ENDING = 3
"""Chunks per worker that what is left of a job is divided into, at least: they get smaller towards its end."""

MOST_BYTES = 4 << 20
"""Of a chunk's lines together, but for a single one that is longer: a message of that size crosses any network."""

AHEAD = 8
"""Chunks per worker that may be begun after one that has not ended: answers wait that long for their order."""

ATTEMPTS = 3
"""After so many engines have failed with a chunk the job ends; a worker that fails so often in a row has no more."""

LOSSES = 5
"""After so many workers were lost while they worked on one line, it is the line."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lines in order that one worker answers together.

    `losses`: workers that were lost while they worked on it; `failed_on`: those whose engine failed with it.
    """

    lines: tuple[Line, ...]
    losses: int = 0
    failed_on: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """Its lines, for people."""
        first, last = self.lines[0].number, self.lines[-1].number
        return f"line {first}" if first == last else f"lines {first} to {last}"


@dataclass(slots=True)
class LeasedTo:
    """What a worker has, the oldest first; `failures` in a row."""

    chunks: list[Chunk] = field(default_factory=list)
    failures: int = 0

    @property
    def benched(self) -> bool:
        """Whether it is given nothing any more."""
        return self.failures >= ATTEMPTS


class Leases:
    """The chunks of `lines` and the workers that have them. `lines_left`: how many there are, None if unknown."""

    def __init__(self, lines: Iterable[Line], lines_left: int | None = None, *, most_lines: int = CHUNK_LINES) -> None:
        self._lines, self._lines_left, self._most_lines = iter(lines), lines_left, most_lines
        self._waiting: deque[Chunk] = deque()
        self._workers: dict[str, LeasedTo] = {}
        self._read_all = False
        self._last_read = 0
        self._refused = ""

    @property
    def finished(self) -> bool:
        """Whether all lines have been read and answered."""
        return self._read_all and not self._waiting and not any(held.chunks for held in self._workers.values())

    @property
    def workers(self) -> Collection[str]:
        """Those that are there."""
        return self._workers.keys()

    def leased(self) -> Iterator[tuple[str, Chunk]]:
        """Every worker with each of its chunks."""
        for worker, held in self._workers.items():
            for chunk in held.chunks:
                yield worker, chunk

    def update(self, present: Collection[str]) -> list[str]:
        """Take note of the workers that are there; those that are gone, whose chunks wait again, are returned.

        Of a worker's chunks it worked on the first: that one comes back in two halves, so that a line with which
        workers end is soon alone. Raises `BatchError` if it is alone and has ended `LOSSES` of them.
        """
        gone = [worker for worker in self._workers if worker not in present]
        for worker in gone:
            chunks = self._workers.pop(worker).chunks
            if chunks:
                self._return([*self._halves(chunks[0]), *chunks[1:]])
        for worker in present:
            self._workers.setdefault(worker, LeasedTo())
        return gone

    def due(self) -> Iterator[tuple[str, Chunk]]:
        """Lease what can be leased, first to workers that have least, and say to whom; each must then be sent there.

        Raises `BatchError` if there are workers, and none of them is fit for work.
        """
        for depth in range(DEPTH):
            for worker, held in self._workers.items():
                if len(held.chunks) == depth and not held.benched and (chunk := self._next(worker)) is not None:
                    held.chunks.append(chunk)
                    yield worker, chunk
        if self._workers and all(held.benched for held in self._workers.values()):
            raise BatchError(self._refused)

    def done(self, worker: str, chunk: Chunk) -> bool:
        """Whether the answers of a chunk count: not those of one that was leased again since, which are the same."""
        held = self._workers.get(worker)
        if held is None or chunk not in held.chunks:
            return False
        held.chunks.remove(chunk)
        held.failures = 0
        return True

    def failed(self, worker: str, chunk: Chunk, why: str) -> None:
        """The engine of a worker failed with a chunk, which waits again; `BatchError` if that was one too many."""
        held = self._workers.get(worker)
        if held is None or chunk not in held.chunks:
            return
        held.chunks.remove(chunk)
        held.failures += 1
        again = replace(chunk, failed_on=(*chunk.failed_on, worker))
        if len(again.failed_on) >= ATTEMPTS:
            raise BatchError(f"{chunk.in_words}: {why} (the last of {ATTEMPTS} attempts, on worker {worker})")
        self._refused = f"no worker is left that can work, the last one, {worker}: {why}"
        self._return([again])

    def _return(self, chunks: list[Chunk]) -> None:
        """What waits is given out in the order of the input, so that few answers wait for their turn."""
        self._waiting = deque(sorted([*self._waiting, *chunks], key=lambda chunk: chunk.lines[0].number))

    def _halves(self, chunk: Chunk) -> list[Chunk]:
        middle = (len(chunk.lines) + 1) // 2
        parts = [part for part in (chunk.lines[:middle], chunk.lines[middle:]) if part]
        if len(parts) == 2:
            return [Chunk(part, failed_on=chunk.failed_on) for part in parts]
        losses = chunk.losses + 1
        if losses >= LOSSES:
            raise BatchError(f"{chunk.in_words}: {how_many(losses, 'worker')} were lost while they worked on it")
        return [replace(chunk, losses=losses)]

    def _next(self, worker: str) -> Chunk | None:
        """The next chunk for a worker: one that waits and has not failed there if another can have it, or a new one."""
        fit = {name for name, held in self._workers.items() if not held.benched}
        for chunk in self._waiting:
            if worker not in chunk.failed_on or fit <= set(chunk.failed_on):
                self._waiting.remove(chunk)
                return chunk
        return None if self._read_all else self._read()

    def _read(self) -> Chunk | None:
        """A chunk of lines that nobody has had yet; None if there are none, or too many wait for an older one."""
        workers, most = len(self._workers), self._most_lines
        open_lines = [chunk.lines[0].number for _, chunk in self.leased()]
        open_lines += [chunk.lines[0].number for chunk in self._waiting]
        if open_lines and self._last_read - min(open_lines) >= AHEAD * workers * most:
            return None
        if self._lines_left is not None:
            most = min(most, max(LEAST_LINES, -(-self._lines_left // (ENDING * workers))))
        lines = tuple(self._some_lines(most))
        if not lines:
            return None
        if self._lines_left is not None:
            self._lines_left = max(0, self._lines_left - len(lines))
        self._last_read = lines[-1].number
        return Chunk(lines)

    def _some_lines(self, most: int) -> Iterator[Line]:
        """So many of the lines at most, or as many as are long enough together."""
        nbytes = 0
        for _ in range(most):
            line = next(self._lines, None)
            if line is None:
                self._read_all = True
                return
            yield line
            nbytes += len(line.data)
            if nbytes >= MOST_BYTES:
                return
