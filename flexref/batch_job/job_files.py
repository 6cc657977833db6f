"""The files of a batch job, and why some cannot be: checked before anything is written; it knows no engine."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flexref.batch_job.journal.reading import journal_path
from flexref.batch_job.journal.records import ERR, OUT
from flexref.errors import StorageError

FileId = tuple[int, int] | str
"""By which all names of a file are one: device and inode, or its path if it is not there yet."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where a job's answers go, and `inputs`, what it reads; without `errors` failed lines are answered in `output`."""

    output: Path
    errors: Path | None = None
    inputs: tuple[Path, ...] = ()

    @property
    def journal(self) -> Path:
        """Where its journal lies."""
        return journal_path(self.output)

    def answers(self) -> Iterator[tuple[str, Path]]:
        """The files of answers, by what a journal calls them."""
        yield OUT, self.output
        if self.errors is not None:
            yield ERR, self.errors

    def named(self) -> Iterator[tuple[str, Path]]:
        """What it writes, by what it is called."""
        yield "the output", self.output
        if self.errors is not None:
            yield "the errors", self.errors
        yield "the journal", self.journal

    def check_other(self, path: Path, what: str) -> None:
        """`StorageError` if `path`, where `what` is to be written, is one of the job's files."""
        found = _status(path)
        for name, own in (*self.named(), *(("the input", read) for read in self.inputs)):
            is_own = os.path.realpath(path) == os.path.realpath(own)
            if is_own or (found is not None and _status(own) is not None and os.path.samefile(path, own)):
                raise StorageError(f"cannot write {path}: it would be {what}, and is {name} of this job")

    def check(self) -> None:
        """`StorageError` for files that are one, are none, or that the job also reads."""
        self._check_names()
        names: dict[FileId, str] = {}
        for path in self.inputs:
            if (found := _status(path)) is not None:
                names[found.st_dev, found.st_ino] = "the input"
        for name, path in self.named():
            found = _status(path)
            if found is not None and not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
                raise StorageError(f"cannot write {path}: it is {kind}, and {name} must be a regular file")
            if found is None and not path.absolute().parent.is_dir():
                raise StorageError(f"cannot write {path}: there is no folder {path.absolute().parent}")
            itself: FileId = os.path.realpath(path) if found is None else (found.st_dev, found.st_ino)
            if itself in names:
                raise StorageError(f"cannot write {path}: it would be {name}, and is {names[itself]} of this job")
            names[itself] = name

    def _check_names(self) -> None:
        """`StorageError` for names that the journal, which is UTF-8, cannot tell."""
        apart = () if self.errors is None else (self.errors, Path(os.path.relpath(self.errors, self.output.parent)))
        for path in (*self.inputs, self.output, *apart):
            name = os.fsencode(path)
            shown = name.decode("utf-8", "backslashreplace")
            if os.fsencode(shown) != name:
                raise StorageError(f"{shown}: its name is not UTF-8, and the journal could not tell it: rename it")

    def check_new(self) -> None:
        """`StorageError` if the output or the errors are there, of a job that has no journal."""
        for name, path in self.named():
            if path != self.journal and os.path.lexists(path):
                raise StorageError(
                    f"cannot write {path}: it is there already, and no journal {self.journal} says that it is {name} "
                    "of this job; --force replaces it"
                )


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot find {path}: {error.strerror or error}") from error
