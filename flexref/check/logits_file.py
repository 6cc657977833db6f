"""Arrays in an .npz file, written as they come and read piece by piece; what comes from outside is believed nothing.

Nothing in it is unpickled, and no size that it states is allocated: whoever reads says what shape is needed.
"""

import math
import os
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from lzma import LZMAError
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from flexref.errors import FlexrefError, LogitsFileError, StorageError, in_gib
from flexref.files import as_text, open_regular, successor

Values = npt.NDArray[Any]

AT_ONCE_BYTES = 1 << 22
"""Bounds what is read at a time, the list of a file's members too: some 50,000 of them."""

HEADER_CHARACTERS = 1 << 12
"""Bounds the description of an array before it is parsed."""

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    struct.error,
    ValueError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile and numpy raise of damaged and hostile files, encrypted ones among them."""


class _WithoutPlaces:
    """A stream in which nothing can be sought: of a device zipfile would believe that it is always at its start."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush, self.close = file.write, file.flush, file.close


def check_room(path: str | Path, nbytes: int) -> None:
    """`StorageError` if a file of so many bytes would fill the disk; where that cannot be known, nothing."""
    if os.path.exists(path) and not os.path.isfile(path):
        return
    with suppress(OSError):
        free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
        if nbytes > free:
            raise StorageError(f"cannot write {path}: it will have {in_gib(nbytes)}, {in_gib(free)} are free there")


class ArraysWriter:
    """The .npz file `path` in the making: it gets its name when `with` ends without an error.

    What is no regular file, a pipe or a device, is written to as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        with self._telling():
            self._file = successor(path)
            self._stream: IO[bytes] | _WithoutPlaces
            if self._file is None:
                self._stream = _WithoutPlaces(open(path, "wb"))  # noqa: SIM115
            else:
                self._stream = os.fdopen(os.dup(self._file.descriptor), "wb")
            self._zip = zipfile.ZipFile(self._stream, "w", zipfile.ZIP_STORED)  # type: ignore[arg-type]

    def __enter__(self) -> "ArraysWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._telling():
            try:
                if kind is None:
                    self._zip.close()
                    self._stream.flush()
                    if self._file is not None:
                        self._file.publish()
            finally:
                if self._file is not None:
                    self._file.close()
                with suppress(OSError, ValueError):  # of what has failed before
                    self._zip.close()
                with suppress(OSError):
                    self._stream.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error

    @contextmanager
    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> Iterator[Callable[[Values], None]]:
        """Yields a function that takes the array's next values, until there are as many as `shape` says."""
        with self._telling(), self._zip.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            stored = np.dtype(dtype).newbyteorder("<")
            header = {"descr": stored.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            yield lambda values: _write(member, np.ascontiguousarray(values, stored))

    def whole(self, name: str, values: Values) -> None:
        """An array that is there already."""
        with self.array(name, values.shape, values.dtype.str) as write:
            write(values)

    def text(self, name: str, text: str) -> None:
        """A text, as an array of bytes."""
        self.whole(name, np.frombuffer(text.encode(), np.uint8))


def _write(member: IO[bytes], values: Values) -> None:
    member.write(values.reshape(-1).view(np.uint8).data)


class _Bounded:
    """A file of which nobody reads much at a time: zipfile would read a list of members of any length."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, count: int = -1) -> bytes:
        """`count` bytes or all that are left; `ValueError` if these are more than `AT_ONCE_BYTES`."""
        data = self._file.read(count if 0 <= count <= AT_ONCE_BYTES else AT_ONCE_BYTES + 1)
        if len(data) > AT_ONCE_BYTES:
            raise ValueError(f"more than {AT_ONCE_BYTES} bytes describe it")
        return data


class StoredArray:
    """One array of a file: its shape and type, its rows read in order."""

    def __init__(self, member: IO[bytes], shape: tuple[int, ...], dtype: "np.dtype[Any]", telling: Any) -> None:
        self._member, self.shape, self.dtype, self._telling = member, shape, dtype, telling

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def fits(self, dtypes: Collection[str], most_bytes: int) -> bool:
        """Whether it has one of these types and an axis, and takes at most so many bytes."""
        has_axes = bool(self.shape) and min(self.shape) >= 0
        return str(self.dtype) in dtypes and has_axes and self.nbytes <= most_bytes

    def whole(self) -> Values:
        """All of it, of which nothing has been read yet."""
        values = self.read(self.shape[0])
        self.end()
        return values

    def read(self, count: int) -> Values:
        """The next `count` rows (count, ...)."""
        result = np.empty((count, *self.shape[1:]), self.dtype)
        view = result.reshape(-1).view(np.uint8).data
        with self._telling():
            while view:
                piece = self._member.read(min(len(view), AT_ONCE_BYTES))
                if not piece:
                    raise EOFError("it ends too early")
                view[: len(piece)] = piece
                view = view[len(piece) :]
        return result

    def end(self) -> None:
        """The array's end, where its checksum is compared; more than the shape says is damage."""
        with self._telling():
            if self._member.read(1):
                raise EOFError("it is longer than its shape says")
            self._member.close()


class ArraysFile:
    """An .npz file from anywhere; every complaint is a `wrong`, that names the file and the array."""

    def __init__(self, path: str | Path, wrong: type[FlexrefError] = LogitsFileError) -> None:
        self.path, self._wrong = str(path), wrong
        try:
            self._file = open_regular(path)
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        try:
            with self.telling("it is no .npz file of numpy"):
                self._zip = zipfile.ZipFile(_Bounded(self._file))  # type: ignore[arg-type]
        except BaseException:
            self._file.close()
            raise
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def __enter__(self) -> "ArraysFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """What is raised meanwhile is told of as `what`."""
        try:
            yield
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # bz2 gives damage no number
                raise StorageError(f"{self.path}: cannot be read: {error.strerror}") from error
            said = " ".join(str(error).split())[:120] or type(error).__name__
            raise self._wrong(f"{self.path}: {what}: {said}") from error

    def array(self, name: str) -> StoredArray:
        """The array of this name, nothing of it read but its description."""
        if name not in self.names:
            found = ", ".join(self.names[:8]) or "none"
            raise self._wrong(f"{self.path}: needed an array {name!r}, found {found[:200]}")
        damaged = f"the array {name!r} cannot be read"
        with self.telling(damaged):
            member = self._zip.open(f"{name}.npy")
            version = np.lib.format.read_magic(member)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise ValueError(f"version {version} of the format is not known")
            shape, is_fortran, dtype = read(member, max_header_size=HEADER_CHARACTERS)
            if is_fortran and len(shape) > 1:
                raise ValueError("its columns lie one after another; np.ascontiguousarray puts rows so")
            if dtype.hasobject:
                raise ValueError("it holds Python objects, which are not unpickled")
        return StoredArray(member, shape, dtype, lambda: self.telling(damaged))

    def whole(self, name: str, kinds: str, most: int) -> Values:
        """All of a list of numbers; `kinds` are numpy's letters of their types, `most` bounds how many there are."""
        stored = self.array(name)
        if stored.dtype.kind not in kinds or len(stored.shape) != 1 or not 0 <= stored.shape[0] <= most:
            raise self._wrong(
                f"{self.path}: the array {name!r} is {stored.dtype} {stored.shape}, needed one axis of at most {most} "
                f"numbers of kind {' or '.join(kinds)}"
            )
        return stored.whole()

    def text(self, name: str, most: int) -> str:
        """An array of at most `most` bytes as a text, as `ArraysWriter.text` writes it."""
        return as_text(self.whole(name, "u", most).astype(np.uint8).tobytes(), self.path, self._wrong)
