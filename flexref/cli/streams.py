"""The three standard streams as every command finds them: open, and able to write any name; it knows no command."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import click


def prepare_streams() -> bool:
    """Make stdin, stdout and stderr usable; whether stdout was open.

    A stream that whoever started us has closed leads nowhere: else the next file that is opened would take its number,
    and be written to. A file's name that is no UTF-8 is written with escapes, not refused.
    """
    was_open = _is_open(1)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        if not _is_open(number):
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = _writes_all(sys.stdout, 1)
    sys.stderr = _writes_all(sys.stderr, 2)
    return was_open


def abandon(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: the interpreter flushes once more when it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """`text` in one line, fit for a terminal: a name that a file gives itself may hold anything."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def tell(text: str) -> None:
    """Print `text` as one line on stderr, whatever the names in it contain; nothing if nobody reads it."""
    line = printable(text)
    complain(lambda: click.echo(line, err=True))


def complain(write: Callable[[], None]) -> None:
    """Call `write`, which prints on stderr; what cannot be printed there changes nothing else."""
    try:
        write()
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _writes_all(stream: TextIO | None, number: int) -> TextIO:
    stream = stream or os.fdopen(number, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return stream
