"""The lines of a job's input: a regular file, looked over once and then read from any line on; it knows no request.

A line feed ends a line, with or without a carriage return before it, and may be missing at the end. A byte order mark
at the start is skipped. Of a line beyond `LONGEST_LINE_BYTES` only the beginning is held.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from flexref.batch_job.answers import Line
from flexref.errors import StorageError
from flexref.files import LONGEST_LINE_BYTES, open_regular
from flexref.text.prompt_lines import JSON_SUFFIXES, is_json_object

OFFSETS_EVERY = 64
"""The place in the file of every so many lines is kept, so that reading may begin there."""

BEGINNING_BYTES = 256
"""What is held of a line that is too long."""

PIECE_BYTES = 1 << 20
"""Read at a time of such a line."""

END = (1 << 62, 0)
"""After the last pair of lines: a number that no line has."""

LINE_END = b"\r\n"
"""The longest end of a line."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Numbers64 = npt.NDArray[np.uint64]


class Identified(msgspec.Struct):
    """All that is decoded of a line to find equal custom_ids."""

    custom_id: str


ID_DECODER = msgspec.json.Decoder(Identified)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Lines whose custom_id an earlier line has: their numbers, rising, and the first line of the same id of each."""

    later: Numbers64
    first: Numbers64

    def __len__(self) -> int:
        return len(self.later)

    def get(self, number: int) -> int | None:
        """The first line that has the custom_id of line `number`; None if that is itself, or it has none."""
        place = int(np.searchsorted(self.later, np.uint64(number)))
        return int(self.first[place]) if place < len(self.later) and self.later[place] == number else None

    def of_rising(self) -> Callable[[int], int | None]:
        """`get` for numbers that rise from call to call, in less time."""
        pairs = self.items()
        later, first = next(pairs, END)

        def get(number: int) -> int | None:
            nonlocal later, first
            while later < number:
                later, first = next(pairs, END)
            return first if later == number else None

        return get

    def items(self) -> Iterator[tuple[int, int]]:
        """(line, the first line of its custom_id), in order of the lines."""
        for begin in range(0, len(self), 1 << 12):  # as Python numbers they are five times as large
            some = slice(begin, begin + (1 << 12))
            yield from zip(self.later[some].tolist(), self.first[some].tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file has found. 33 bytes a line are held.

    `hashes` (lines,): XXH3-64 of every line; `filled` (lines,): whether it is more than white space; `offsets`: where
    every `OFFSETS_EVERY`th line begins. `digest`: XXH3-128 of the whole file, in hex. `as_json`: whether its lines are
    JSON objects, as its suffix or its first filled line says; else each is a prompt. `identity` is that of the file as
    it was: another one is another file.
    """

    path: Path
    size_bytes: int
    digest: str
    as_json: bool
    hashes: Numbers64
    filled: npt.NDArray[np.bool_]
    offsets: Numbers64
    duplicates: Duplicates
    identity: tuple[int, ...]

    @property
    def lines(self) -> int:
        """Lines of the file, blank ones too."""
        return len(self.hashes)


@dataclass(slots=True)
class _Found:
    """What a pass over the lines collects."""

    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    filled: bytearray = field(default_factory=bytearray)
    id_lines: "array[int]" = field(default_factory=lambda: array("Q"))
    id_digests: bytearray = field(default_factory=bytearray)
    as_json: bool | None = None


def scan(path: Path | str) -> Scan:
    """Look over a regular file once, with little memory whatever its size. Raises `StorageError` if it cannot be read.

    Equal custom_ids are found by their XXH3-128: two that differ pass for equal once in 10**26 files of a million
    lines.
    """
    path, whole, found = Path(path), xxh3_128(), _Found()
    if path.suffix.lower() in JSON_SUFFIXES:
        found.as_json = True
    with _reading(path) as file:
        identity = _identity(file)
        for line, begin in numbered_lines(file, whole=whole):
            if len(found.hashes) % OFFSETS_EVERY == 0:
                found.offsets.append(begin)
            found.hashes.append(line.request_hash)
            found.filled.append(not line.blank)
            if found.as_json is None and found.filled[-1]:
                found.as_json = looks_like_json(line)
            digest = id_digest(line) if found.as_json else None
            if digest is not None:
                found.id_lines.append(line.number)
                found.id_digests += digest
        if _identity(file) != identity:
            raise _changed(path)
    return Scan(
        path,
        identity[2],
        whole.hexdigest(),
        bool(found.as_json),
        np.frombuffer(found.hashes, np.uint64),
        np.frombuffer(found.filled, np.bool_),
        np.frombuffer(found.offsets, np.uint64),
        _duplicates(found),
        identity,
    )


def read_lines(found: Scan, numbers: Iterable[int] | None = None) -> Iterator[Line]:
    """The lines of these numbers, which rise, or all lines. What lies between is passed over.

    Raises `StorageError` if the file cannot be read, or is no longer the one that was looked over.
    """
    wanted = iter(range(1, found.lines + 1) if numbers is None else numbers)
    number = next(wanted, None)
    if number is None:
        return
    duplicate_of = found.duplicates.of_rising()
    with _reading(found.path) as file:
        if _identity(file) != found.identity:
            raise _changed(found.path)
        while number is not None:
            first = (number - 1) // OFFSETS_EVERY * OFFSETS_EVERY + 1
            file.seek(int(found.offsets[first // OFFSETS_EVERY]))
            for line, _ in numbered_lines(file, first):
                if line.number < number:
                    continue
                if line.request_hash != found.hashes[number - 1]:
                    raise _changed(found.path)
                yield marked(line, duplicate_of(number))
                number = next(wanted, None)
                if number is None or number > line.number + OFFSETS_EVERY:
                    break
            else:
                raise _changed(found.path)  # it has fewer lines than it had
        if _identity(file) != found.identity:
            raise _changed(found.path)


def numbered_lines(file: BinaryIO, first: int = 1, whole: Any = None) -> Iterator[tuple[Line, int]]:
    """(line, the offset where it begins) of a file from where it stands, which is the beginning of line `first`.

    `whole` is a hash that is fed all bytes. Raises what reading raises.
    """
    begin = file.tell() if first > 1 else 0
    for number in count(first):
        room = LONGEST_LINE_BYTES + len(LINE_END) + (len(BYTE_ORDER_MARK) if number == 1 else 0)
        data = file.readline(room)
        if not data:
            return
        if whole is not None:
            whole.update(data)
        length, digest = len(data), None
        if number == 1:
            data = data.removeprefix(BYTE_ORDER_MARK)
        if data.endswith(b"\n"):
            data = data[:-1].removesuffix(b"\r")
        elif length == room:
            more, digest = _pass_over(file, data, whole)
            length += more
            data = data[:BEGINNING_BYTES]
        if digest is None and len(data) > LONGEST_LINE_BYTES:
            data, digest = data[:BEGINNING_BYTES], xxh3_64_intdigest(data)
        yield Line(number, data, digest), begin
        begin += length


def looks_like_json(line: Line) -> bool:
    """Whether a first filled line says that all lines are JSON objects."""
    if line.digest is not None:
        return line.data.lstrip().startswith(b"{")
    return is_json_object(line.data.decode("utf-8", "replace"))


def id_digest(line: Line) -> bytes | None:
    """The XXH3-128 of the line's custom_id; None if it has none that can be read."""
    if line.digest is not None:
        return None
    try:
        return xxh3_128_digest(ID_DECODER.decode(line.data).custom_id.encode())
    except (msgspec.DecodeError, ValueError, RecursionError):  # what is wrong is said where the whole line is read
        return None


def marked(line: Line, duplicate_of: int | None) -> Line:
    """`line`, as one whose custom_id an earlier line has, if there is one."""
    return line if duplicate_of is None else replace(line, duplicate_of=duplicate_of)


def _pass_over(file: BinaryIO, beginning: bytes, whole: Any) -> tuple[int, int]:
    """Read the rest of a line without holding it: (its bytes, the XXH3-64 of the whole line without its end)."""
    # Its last byte is hashed when it is certain that it is no carriage return before the line feed.
    hashed, held, length = xxh3_64(beginning[:-1]), beginning[-1:], 0
    while not held.endswith(b"\n") and (piece := file.readline(PIECE_BYTES)):
        length += len(piece)
        if whole is not None:
            whole.update(piece)
        held += piece
        keep = 2 if piece.endswith(b"\n") else 1
        hashed.update(held[:-keep])
        held = held[-keep:]
    hashed.update(held.removesuffix(b"\n").removesuffix(b"\r") if held.endswith(b"\n") else held)
    return length, hashed.intdigest()


def _duplicates(found: _Found) -> Duplicates:
    """Of the lines that have a custom_id, those whose id an earlier one has."""
    ids = np.frombuffer(found.id_digests, np.uint64).reshape(-1, 2)
    numbers = np.frombuffer(found.id_lines, np.uint64)
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: lines of one id stay in their order
    ids, numbers = ids[order], numbers[order]
    new = np.ones(len(ids), np.bool_)
    new[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    first = numbers[new][np.cumsum(new) - 1]
    later = np.flatnonzero(~new)
    rising = later[np.argsort(numbers[later])]
    return Duplicates(numbers[rising], first[rising])


@contextmanager
def _reading(path: Path | str) -> Iterator[BufferedReader]:
    """A regular file that is read, and nothing else is done meanwhile; what goes wrong with it is a `StorageError`."""
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _identity(file: BufferedReader) -> tuple[int, int, int, int]:
    """What changes of a file when something is written to it or when it is replaced."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path) -> StorageError:
    return StorageError(f"{path} was changed while the job read it; give the same command again when it is at rest")
