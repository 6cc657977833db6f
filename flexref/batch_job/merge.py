"""Joins outputs of the shards of a job in the order of the input, as their journals say; it knows no format of lines.

Nothing is joined that does not fit together: all shards of one job, each once, each finished, each as it was written.
What comes is what one process would have written, byte for byte. Two bits a line of each shard are held.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64

from flexref.batch_job.identity import Identity
from flexref.batch_job.journal.line_facts import DONE, FAILED
from flexref.batch_job.journal.reading import journal_path, read_journal
from flexref.batch_job.journal.records import ERR, OUT
from flexref.batch_job.shard import Shard
from flexref.batch_job.whole_file import WholeFile
from flexref.errors import BatchError, StorageError
from flexref.files import open_regular

WRITE_BYTES = 1 << 20
"""Gathered before it is written."""

SHARD = "shard"
"""The setting in which the shards of a job differ."""

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """A shard's files, and what its journal says of them. `done`, `failed`: bits by line, packed.

    `marks`: of OUT and ERR, bytes and checksum of what was written. `whole_to`: the line up to which it is written.
    """

    path: Path
    errors: Path | None
    shard: Shard
    identity: Identity
    lines: int
    finished: bool
    whole_to: int
    done: Bits
    failed: Bits
    marks: Mapping[str, tuple[int, str]]

    @property
    def in_words(self) -> str:
        """Which shard it is, for people."""
        return f"{self.path}, shard {self.shard.index} of {self.shard.count}"

    @property
    def files(self) -> list[Path]:
        """All that is read of it."""
        return [self.path, journal_path(self.path), *([] if self.errors is None else [self.errors])]

    def answers(self, chunk: int) -> tuple[int, int]:
        """How many lines of a chunk are answered and have not failed, and how many have."""
        first = chunk * self.shard.chunk_lines
        last = min(first + self.shard.chunk_lines, self.lines)
        done, failed = (_count(bits, first, last) for bits in (self.done, self.failed))
        return done - failed, failed


def _count(bits: Bits, first: int, last: int) -> int:
    """How many of the bits from `first` to before `last` are set."""
    return int(np.unpackbits(bits[first // 8 : -(-last // 8)])[first % 8 : first % 8 + last - first].sum())


def read_shard(path: Path) -> ShardOutput:
    """What lies at `path`, and beside it. Raises what `read_journal` raises."""
    contents = read_journal(journal_path(path))
    states = np.frombuffer(contents.facts.states, np.uint8)[1:]
    settings = dict(contents.identity.settings)
    shard = Shard.of_words(settings.pop(SHARD, None))
    identity = Identity(contents.identity.input, contents.identity.model, settings, contents.identity.arithmetic)
    marks = {
        name: max(found, key=lambda mark: (mark.bytes, mark.line)) for name, found in contents.marks.items() if found
    }
    errors = None if contents.opened is None else contents.opened.errors
    return ShardOutput(
        path,
        None if errors is None else path.parent / errors,
        shard,
        identity,
        contents.header.lines,
        contents.finished,
        min((mark.line for mark in marks.values()), default=0),
        np.packbits(states & DONE),
        np.packbits(states & FAILED),
        {name: (mark.bytes, mark.hash) for name, mark in marks.items()},
    )


def read_shards(paths: Sequence[Path], *, accept_arithmetic: bool = False) -> list[ShardOutput]:
    """The shards whose outputs lie at `paths`, in the order of their numbers.

    Raises `BatchError` if they are not all shards of one job, each there once and finished; `accept_arithmetic`: also
    if processors, devices or libraries were not the same. Raises what `read_shard` raises.
    """
    first: ShardOutput | None = None
    found: dict[int, ShardOutput] = {}
    for path in paths:
        one = read_shard(path)
        first = first or one
        _check_same_job(one, first, accept_arithmetic)
        if one.shard.index in found:
            raise BatchError(f"{one.in_words}, is there already: {found[one.shard.index].path}")
        found[one.shard.index] = one
    if first is None:
        raise BatchError("there is no output to merge")
    for index in range(first.shard.count):
        if index not in found:
            missing = Shard(index, first.shard.count, first.shard.chunk_lines)
            raise BatchError(f"shard {index} of {missing.count} is missing: {_lines_of(missing, first.lines)}")
    for one in found.values():
        if not one.finished:
            raise BatchError(
                f"{one.in_words}, is not finished: it is whole up to line {one.whole_to}; run it to its end"
            )
    return [found[index] for index in sorted(found)]


def _check_same_job(one: ShardOutput, first: ShardOutput, accept_arithmetic: bool) -> None:
    differences = one.identity.differences(first.identity, arithmetic=not accept_arithmetic)
    if (one.shard.count, one.shard.chunk_lines) != (first.shard.count, first.shard.chunk_lines):
        differences.append(f"the input was divided otherwise: {first.shard.in_words}, and {one.shard.in_words}")
    if differences:
        raise BatchError(f"{one.path} is of another job than {first.path}: {'; '.join(differences)}")


def _lines_of(shard: Shard, lines: int) -> str:
    """Which lines a shard has, in words."""
    firsts = range(shard.index * shard.chunk_lines, lines, shard.count * shard.chunk_lines)
    spans = [f"{first + 1} to {min(first + shard.chunk_lines, lines)}" for first in firsts[:3]]
    if not spans:
        return "it has no lines, but its output and journal must be there"
    return f"it has the lines {', '.join(spans)}{' and so on' if len(firsts) > 3 else ''}"


class WrittenLines:
    """The lines of one file of a shard, taken in order; checked against what the journal says of it in the end."""

    def __init__(self, path: Path, mark: tuple[int, str]) -> None:
        """Raises `StorageError` if it cannot be opened. `mark`: its bytes and their checksum."""
        self._path, self._mark = path, mark
        try:
            self._file: BufferedReader = open_regular(path)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        self._bytes, self._digest = 0, xxh3_64()

    def take(self, count: int) -> Iterator[bytes]:
        """So many lines."""
        for _ in range(count):
            line = self._read()
            if not line.endswith(b"\n"):
                raise BatchError(f"{self._path} does not match its journal: it ends at byte {self._bytes}")
            yield line

    def check_end(self) -> None:
        """`BatchError` if it is not what the job wrote."""
        while self._read():
            pass
        size, digest = self._mark
        if self._bytes != size:
            raise BatchError(f"{self._path} does not match its journal: it has {self._bytes} bytes, not {size}")
        if self._digest.hexdigest() != digest:
            raise BatchError(f"{self._path} does not match its journal: its {size} bytes were changed")

    def _read(self) -> bytes:
        try:
            line = self._file.readline()
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror or error}") from error
        self._bytes += len(line)
        self._digest.update(line)
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


NOTHING_WRITTEN = 0, xxh3_64().hexdigest()
"""What vouches for a file that no line went to."""


def merge(shards: Sequence[ShardOutput], output: Path, errors: Path | None = None) -> tuple[int, int]:
    """Write the answers of all shards to `output` and, where failed lines have a file of their own, to `errors`.

    Both appear whole, or none does; (lines answered, of those failed). Raises `BatchError` if an output is not what its
    journal says, or `errors` is missing or superfluous; `StorageError` for what cannot be read or written.
    """
    apart = any(shard.errors is not None for shard in shards)
    if apart != (errors is not None):
        lie = "lie in files of their own" if apart else "stand in the outputs"
        raise BatchError(f"failed lines {lie}: give {'' if apart else 'no '}--errors")
    with ExitStack() as stack:
        parts = [_opened(stack, shard) for shard in shards]
        merged = stack.enter_context(closing(WholeFile(output)))
        merged_errors = None if errors is None else stack.enter_context(closing(WholeFile(errors)))
        answered = failed = 0
        for chunk in range(-(-shards[0].lines // shards[0].shard.chunk_lines)):
            number = chunk % len(shards)
            good, bad = shards[number].answers(chunk)
            out, err = parts[number]
            if merged_errors is None or err is None:
                _copy(out.take(good + bad), merged)
            else:
                _copy(out.take(good), merged)
                _copy(err.take(bad), merged_errors)
            answered, failed = answered + good + bad, failed + bad
        for part in parts:
            for written in part:
                if written is not None:
                    written.check_end()
        merged.sync()
        if merged_errors is not None:
            merged_errors.sync()
            merged_errors.publish()
        merged.publish()
    return answered, failed


def _opened(stack: ExitStack, shard: ShardOutput) -> tuple[WrittenLines, WrittenLines | None]:
    out = stack.enter_context(closing(WrittenLines(shard.path, shard.marks.get(OUT, NOTHING_WRITTEN))))
    if shard.errors is None:
        return out, None
    return out, stack.enter_context(closing(WrittenLines(shard.errors, shard.marks.get(ERR, NOTHING_WRITTEN))))


def _copy(lines: Iterator[bytes], file: WholeFile) -> None:
    data = bytearray()
    for line in lines:
        data += line
        if len(data) >= WRITE_BYTES:
            file.write(data)
            data = bytearray()
    if data:
        file.write(data)
