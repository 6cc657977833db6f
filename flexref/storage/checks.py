"""Checksums of datasets while their bytes go by, in pieces of any size; it reads no file."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.errors import WeightFileError
from flexref.storage.weightfile import Part


def checksum_of(memory: npt.NDArray[np.uint8]) -> int:
    """The XXH3-64 of some bytes. Unlike `xxh3_64_intdigest` it lets other threads run meanwhile."""
    digest = xxhash.xxh3_64()
    digest.update(memory.data)
    return digest.intdigest()


class PartChecker:
    """Fed with consecutive bytes of a file from `start` on, it checks every part as soon as its last byte came by."""

    def __init__(self, parts: Sequence[Part], start: int, path: str) -> None:
        """`parts` in file order; bytes between them are skipped. Errors name the file `path`."""
        self._parts, self._path = list(parts), path
        self._position = start
        self._digest = xxhash.xxh3_64()

    def feed(self, memory: npt.NDArray[np.uint8]) -> None:
        """The next bytes; `WeightFileError` names the first dataset whose checksum differs."""
        end = self._position + memory.nbytes
        while self._parts:
            extent = self._parts[0].extent
            last = extent.offset + extent.nbytes
            first = max(extent.offset, self._position)
            if first < min(last, end):
                self._digest.update(memory[first - self._position : min(last, end) - self._position].data)
            if last > end:
                break
            self._finish(self._parts.pop(0))
        self._position = end

    def _finish(self, part: Part) -> None:
        found = self._digest.intdigest()
        self._digest = xxhash.xxh3_64()
        if found != part.checksum:
            raise WeightFileError(
                f"{self._path}: dataset {part.dataset} is damaged: its checksum is {found:016x}, "
                f"needed {part.checksum:016x}; convert the model again"
            )
