"""A file of Trace Events that grows as they come; it knows the format's frame and no event.

The format's array form needs no end, so that what a process leaves that is killed can be opened as it is.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexref.errors import StorageError

PENDING_BYTES = 1 << 16
"""Bounds the events that are held in memory."""

PENDING_S = 1.0
"""Whatever is older is written with the next event."""


class TraceFile:
    """Events as JSON, one a line, in the file `path`: after `open` whole events are there, after `close` whole JSON.

    Once something could not be written nothing more is, and `close` says so: a job is not ended by its trace.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._descriptor = -1
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._written_bytes = 0
        self._written_at = 0.0
        self._failure: OSError | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._descriptor >= 0

    def open(self) -> None:
        """Begin the file, in place of an older one; `StorageError` if that cannot be."""
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        self._written_at = time.monotonic()

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event; it is written soon."""
        text = json.dumps(event, allow_nan=False, separators=(",", ":"))
        first = not self._written_bytes and not self._pending
        self._pending.append(f"[\n{text}" if first else f",\n{text}")
        self._pending_bytes += len(self._pending[-1])
        if self._pending_bytes >= PENDING_BYTES or time.monotonic() - self._written_at >= PENDING_S:
            self.flush()

    def flush(self) -> None:
        """Write what is held; a failure is kept for `close`, and no half of an event stays in the file."""
        data = memoryview("".join(self._pending).encode())
        self._pending, self._pending_bytes, self._written_at = [], 0, time.monotonic()
        if self._failure is not None or not self.is_open:
            return
        whole = self._written_bytes
        try:
            while data:
                count = os.write(self._descriptor, data)
                data, self._written_bytes = data[count:], self._written_bytes + count
        except OSError as error:
            self._failure = error
            with suppress(OSError):  # a pipe keeps what it has
                os.ftruncate(self._descriptor, whole)

    def close(self) -> None:
        """End the file; once is enough. `StorageError` if anything could not be written."""
        if not self.is_open:
            return
        self._pending.append("\n]\n" if self._written_bytes or self._pending else "[]\n")
        self.flush()
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.close(descriptor)
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            raise StorageError(f"cannot write {self.path}: {self._failure.strerror}") from self._failure
