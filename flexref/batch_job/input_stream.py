"""The lines of a job's input that comes as a stream, each once, as it comes; it knows no request."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO

from flexref.batch_job.answers import Line
from flexref.batch_job.input_file import id_digest, looks_like_json, marked, numbered_lines
from flexref.errors import StorageError
from flexref.files import open_regular


class InputStream:
    """Lines as they come. Custom_ids are remembered by their XXH3-128: some 130 bytes for every line that has one."""

    def __init__(self, file: BinaryIO, name: str = "the input") -> None:
        """Reads up to the first filled line, which says whether the lines are JSON objects. Raises `StorageError`."""
        self.as_json = False
        """Whether its lines are JSON objects; else each is a prompt."""
        begun, lines = [], _lines(file, name)
        for line in lines:
            begun.append(line)
            if not line.blank:
                self.as_json = looks_like_json(line)
                break
        every = chain(begun, lines)
        self._lines = each_marked(every) if self.as_json else every

    def __iter__(self) -> Iterator[Line]:
        """The lines that have not been read yet. Raises `StorageError`."""
        return self._lines


def each_marked(lines: Iterable[Line]) -> Iterator[Line]:
    """`lines`, which are JSON objects; one whose custom_id an earlier one has is marked."""
    first: dict[bytes, int] = {}
    for line in lines:
        digest = id_digest(line)
        known = line.number if digest is None else first.setdefault(digest, line.number)
        yield marked(line, None if known == line.number else known)


def standard_input() -> InputStream:
    """What comes on standard input. Raises `StorageError` if it is closed."""
    if sys.stdin is None:
        raise StorageError("standard input cannot be read: it is closed")
    return InputStream(sys.stdin.buffer, "standard input")


@contextmanager
def file_input(path: str) -> Iterator[InputStream]:
    """The lines of a regular file, as long as the context lasts; only what goes wrong with the file is its fault."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        yield InputStream(file, path)


def _lines(file: BinaryIO, name: str) -> Iterator[Line]:
    try:
        for line, _ in numbered_lines(file):
            yield line
    except (OSError, ValueError) as error:  # closed: a ValueError
        raise StorageError(f"{name} cannot be read: {error}") from error
