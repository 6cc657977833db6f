"""Files read whole up to a bound, or told in one line why not; files written whole or not at all. It knows no content.

What is read is a regular file, as the open descriptor says: a pipe hangs no reader, and no device fills its memory.

A new file gets its name only when it is whole; until then nobody sees it, and whatever ends the process removes it. On
Linux it has no name at all while it is written (O_TMPFILE). Where a file system cannot do that, it is called
`.NAME.XXXXXXXX.partial` and locked; what a killed process left of that kind is removed by the next one.
"""

import errno
import fcntl
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from flexref.errors import FlexrefError, StorageError

LARGEST_JSON_BYTES = 1 << 26
"""Bounds a JSON object that is read: OPT-175B's index of weights has 0.2 MB, a measured machine less."""

LARGEST_TEXT_BYTES = 1 << 30
"""Bounds a text, prompts or questions."""

CHUNK_BYTES = 1 << 16
"""Read at a time of a file that says nothing of its size."""

LONGEST_LINE_BYTES = 1 << 22
"""Bounds a line where a file is read line by line."""

NAME_LETTERS = 40
"""Letters of the target's name in that of a temporary one: both together must stay a legal name."""


def read_object(
    path: str | Path, wrong: type[FlexrefError], *, what: str = "", needed: str = "must hold a JSON object"
) -> dict[str, Any]:
    """The JSON object in `path`. `wrong` says in one line why it is none, or that it is too long.

    Raises `StorageError` if it cannot be read, which names it as `what` and its path.
    """
    try:
        found, data = _read_regular(path, LARGEST_JSON_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read {what}{path or repr(path)}: {error.strerror}") from error
    if found > LARGEST_JSON_BYTES:
        raise wrong(f"{path} has {found} bytes, at most {LARGEST_JSON_BYTES} are read")
    try:
        values = json.loads(data, object_pairs_hook=members_once)
    except (ValueError, RecursionError) as error:
        raise wrong(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise wrong(f"{path} {needed}, found {type(values).__name__}")
    return values


def members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of a JSON object by name, as a hook of `json`; `ValueError` if a key stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one of its objects")
    return found


def read_bytes(
    path: str | Path, unreadable: type[FlexrefError] = StorageError, *, most_bytes: int = LARGEST_TEXT_BYTES
) -> bytes:
    """All of a regular file; `unreadable` if it is none, is longer than `most_bytes` or the file system refuses."""
    try:
        found, data = _read_regular(path, most_bytes)
    except OSError as error:
        raise unreadable(f"{path or repr(path)}: cannot be read: {error.strerror}") from error
    if found > most_bytes:
        raise unreadable(f"{path}: cannot be read: it has {found} bytes, at most {most_bytes} are read")
    return data


def filled_lines(path: str | Path, wrong: type[FlexrefError]) -> Iterator[tuple[str, bytes]]:
    """(the line's place in words, the line) of a regular file, one at a time; blank ones are left out.

    `wrong` says which line is too long, or that the file is; `StorageError` that it cannot be read.
    """
    try:
        with open_regular(path) as file:
            found = 0
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES + 1), b""), start=1):
                found += len(line)
                if len(line) > LONGEST_LINE_BYTES:
                    raise wrong(f"{path}, line {number}: is too long: at most {LONGEST_LINE_BYTES} bytes are read")
                if found > LARGEST_TEXT_BYTES:
                    raise wrong(f"{path} is too long: at most {LARGEST_TEXT_BYTES} bytes are read")
                if filled := line.strip():
                    yield f"{path}, line {number}", filled
    except OSError as error:
        raise StorageError(f"cannot read {path or repr(path)}: {error.strerror or error}") from error


def open_regular(path: str | Path) -> BufferedReader:
    """A regular file, to be read; `OSError` if it is none."""
    # The object has the descriptor from the first moment on: an interrupt on the way closes it once, and not twice.
    file = open(path, "rb", opener=_opened)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def _opened(path: str, flags: int) -> int:
    """Without O_NONBLOCK the opening of a pipe would wait for its writer; of a regular file it changes nothing."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _read_regular(path: str | Path, most_bytes: int) -> tuple[int, bytes]:
    """(bytes found, the content) of a regular file; where more than `most_bytes` are found, not all the content."""
    with open_regular(path) as file:
        data, found = bytearray(), os.fstat(file.fileno()).st_size
        while found <= most_bytes and (more := file.read(max(CHUNK_BYTES, found - len(data)))):
            data += more
            found = max(found, len(data))  # it may grow meanwhile
    return found, bytes(data)


def as_text(data: bytes, where: str | Path, wrong: type[FlexrefError]) -> str:
    """`data` as UTF-8; `wrong` says at which byte of `where` it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise wrong(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def write_text(path: str | Path, text: str, *, what: str = "") -> None:
    """`replace_text`; `StorageError` names the file as `what` and its path."""
    _write(path, text.encode("utf-8"), what)


def write_bytes(path: str | Path, data: bytes) -> None:
    """`write_text` of bytes."""
    _write(path, data, "")


def _write(path: str | Path, data: bytes, what: str) -> None:
    try:
        _replace(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {what}{path or repr(path)}: {error.strerror or error}") from error


def replace_text(path: str | Path, text: str) -> None:
    """Write all of `text` to `path`, or leave what was there and raise `OSError`; it has reached the disk then.

    A link is followed, and an older file's rights stay. What is no regular file, a pipe or a terminal, is written in
    place. An older file in a folder in which nothing new may be made is not: a full disk would leave half of it.
    """
    _replace(path, text.encode("utf-8"))


def _replace(path: str | Path, data: bytes) -> None:
    if not os.fspath(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    file = successor(path)
    if file is None:
        Path(path).write_bytes(data)
        return
    try:
        file.write(memoryview(data), 0)
        file.publish()
    finally:
        file.close()


def successor(path: str | Path) -> "NewFile | None":
    """What takes the place of the file `path` once it is published; a link is followed, an older file's rights stay.

    None where `path` is no regular file, a pipe or a device, which is written in place. Raises `OSError`.
    """
    old = os.stat(path) if os.path.exists(path) else None  # what /dev/stdout leads to may have no name
    if old is not None and not stat.S_ISREG(old.st_mode):
        return None
    file = NewFile(Path(os.path.realpath(path)))
    try:
        if old is not None:
            with suppress(PermissionError):  # somebody else's file, in a folder that is ours
                os.fchmod(file.descriptor, stat.S_IMODE(old.st_mode))
    except BaseException:
        file.close()
        raise
    return file


class NewFile:
    """The file `path` in the making, as `descriptor`. Raises `OSError`: the caller says what for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary: Path | None = None
        remove_leftovers(path)
        self.descriptor = self._unnamed()
        if self.descriptor < 0:
            self._temporary = self._temporary_name()
            self.descriptor = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system may have no locks (Lustre); then `remove_leftovers` removes nothing
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unnamed(self) -> int:
        """A descriptor of a file without a name; -1 where there is none to be had."""
        try:
            descriptor = os.open(self._path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError:  # an older kernel or another file system; a folder that cannot be written is found out next
            return -1
        if not os.path.exists(f"/proc/self/fd/{descriptor}"):  # it could never get a name
            os.close(descriptor)
            return -1
        return descriptor

    def _temporary_name(self) -> Path:
        return self._path.parent / f"{_prefix(self._path)}{os.urandom(4).hex()}.partial"

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        while data:
            count = os.pwrite(self.descriptor, data, offset)
            if not count:
                raise OSError("nothing more can be written")
            data, offset = data[count:], offset + count

    def publish(self) -> None:
        """Sync the file and let it take its name, in place of an older one."""
        os.fsync(self.descriptor)
        if self._temporary is None:
            name = self._temporary_name()
            # Only with a folder's descriptor does Python ask Linux to follow the link; the path is absolute anyway.
            os.link(f"/proc/self/fd/{self.descriptor}", name, src_dir_fd=self.descriptor, follow_symlinks=True)
            self._temporary = name
        os.replace(self._temporary, self._path)
        self._temporary = None
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file; without a name it is gone. Once is enough, and nothing is raised."""
        if self.descriptor < 0:
            return
        descriptor, self.descriptor = self.descriptor, -1
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()
        with suppress(OSError):  # a late failure of what nobody wants any more; a published file has been synced
            os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that are dead left of a file `path` in the making."""
    ours = re.compile(re.escape(_prefix(path)) + r"[0-9a-f]{8}\.partial")  # as `NewFile` names them
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(left: Path) -> None:
    """Remove a temporary file that nobody holds."""
    with suppress(OSError):  # gone meanwhile, somebody else's, or held: it is not ours to remove
        descriptor = os.open(left, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
        finally:
            os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name[:NAME_LETTERS]}."


def sync_folder(folder: Path) -> None:
    """Let a renamed file survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
