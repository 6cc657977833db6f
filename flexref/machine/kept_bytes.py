"""Pieces of bytes that are costly to make, kept in files of the user's folder; it knows not what they are.

Each is a file of its own that gets its name when it is whole. Several processes may use a folder at once: at worst one
of them makes anew what another has just removed.
"""

import hashlib
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from flexref.errors import StorageError
from flexref.files import read_bytes, write_bytes

LOG = logging.getLogger(__name__)

SUFFIX = ".kept"

DIGEST_BYTES = hashlib.sha256().digest_size


class KeptBytes:
    """At most `most_bytes` in `folder`, of which what was used least recently goes first; any thread may ask.

    What cannot be read is as if it were not there. That nothing can be written is logged as a warning, once.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self._refused, self._one = False, threading.Lock()

    def get(self, key: str) -> bytes | None:
        """What was kept as `key`, a word that may be a file's name; None if nothing was, or if it is damaged."""
        path = self._path(key)
        if not os.path.exists(path):  # nor is what lies in a folder that may not be looked into, which Path would raise
            return None
        try:
            data = read_bytes(path, most_bytes=self._most_bytes)
        except StorageError as error:
            if os.path.exists(path):  # else another process has removed it just now
                LOG.info("%s; it is made anew", error)
            return None
        digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if digest != _digest(key, content):
            LOG.info("%s is damaged; it is made anew", path)
            return None
        _use(path)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep `content`, in place of what was kept as `key`, if the folder lets it."""
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"cannot make {self.folder}: {error.strerror}") from error
            write_bytes(self._path(key), _digest(key, content) + content)
            _use(self._path(key))
        except StorageError as error:
            with self._one:
                first, self._refused = not self._refused, True
            if first:
                LOG.warning("%s: nothing is kept there, and all of it is made anew next time", error)
            return
        self._make_room()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self) -> None:
        """Remove what was used least recently, until no more than `most_bytes` are left."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # another process has removed it
                state = path.stat()
                found.append((state.st_mtime_ns, path, state.st_size))
        too_many = sum(size for _, _, size in found) - self._most_bytes
        for _, path, size in sorted(found):
            if too_many <= 0:
                return
            with suppress(OSError):
                path.unlink()
            too_many -= size


def _use(path: Path) -> None:
    """Note that the file is used now: a kernel's own clock for files may tell moments apart to some milliseconds."""
    now_ns = time.time_ns()
    with suppress(OSError):  # in a folder that may only be read it goes earlier than others; or it is gone already
        os.utime(path, ns=(now_ns, now_ns))


def _digest(key: str, content: bytes) -> bytes:
    """Of both: what lies under another's name is damaged too."""
    return hashlib.sha256(key.encode() + b"\0" + content).digest()
