"""A file that gets its name only when it is whole; until then nobody sees it, and whatever ends the process removes it.

On Linux the file has no name at all while it is written (O_TMPFILE). Where a file system cannot do that, it is called
`.NAME.XXXXXXXX.partial` and locked; what a killed process left of that kind is removed by the next one.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

NAME_LETTERS = 40
"""Letters of the target's name in that of a temporary one: both together must stay a legal name."""


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
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is ours alone: see `remove_leftovers`

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
        return self._path.parent / f"{_prefix(self._path)}{secrets.token_hex(4)}.partial"

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
    prefix = _prefix(path)
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if (
                entry.name.startswith(prefix)
                and entry.name.endswith(".partial")
                and entry.is_file(follow_symlinks=False)
            ):
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
