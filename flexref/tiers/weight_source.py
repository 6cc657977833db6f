"""What a weight store reads from: the bytes of a weight file, or of what stands for one; it knows no tensor."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flexref.errors import PolicyError, WeightFileError, in_gib
from flexref.tiers.disk import RangeAhead
from flexref.tiers.transfer import DiskFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier

Bytes = npt.NDArray[np.uint8]


class ByteChecker(Protocol):
    """Is fed with consecutive bytes; raises `WeightFileError` as soon as they are not those that belong there."""

    def feed(self, memory: Bytes) -> None: ...


MakeChecker = Callable[[str], ByteChecker]
"""A checker for one reading of one range, from its beginning; its errors name the path that it is given."""


class PieceReading(Protocol):
    """One range of a file that is read in pieces, and checked by whoever reads it.

    `path`: the copy that it is read from.
    """

    @property
    def path(self) -> str: ...

    def read(self, offset: int, into: Bytes) -> None:
        """Fill `into` from `offset` on, on a lane."""

    def begin_again(self, error: WeightFileError) -> None:
        """Raise `error` if nothing is left to try; else the range may be read once more, from its beginning."""


class WeightSource(DiskFile, Protocol):
    """Where a weight file's bytes come from, by their offsets in it: the file itself, or what stands for one.

    `checked`: whether they must match the checksums; else there is no file, and the disk can be no tensor's home.
    `direct`: whether large reads bypass the page cache. `progress` grows while a long read goes on. Lanes and other
    threads may read at the same time.
    """

    @property
    def checked(self) -> bool: ...

    @property
    def direct(self) -> bool: ...

    @property
    def progress(self) -> int: ...

    def read(self, offset: int, into: Bytes, checker: MakeChecker | None = None) -> None:
        """Fill `into` from `offset` on with bytes that pass the check; `StorageError` or `WeightFileError` if none."""

    def ask_ahead(self, offset: int, into: Bytes) -> RangeAhead | None:
        """The chunks of a range, to be asked for before it is read: see `reads_ahead.FileAhead`."""

    def read_rows(
        self, offsets: npt.NDArray[np.int64], into: Bytes, checksums: npt.NDArray[np.uint64] | None = None
    ) -> None:
        """into (R, row bytes): the bytes from each of the `offsets` on; `checksums` (R,): the XXH3-64 of each."""

    def reading(self, offset: int, nbytes: int) -> PieceReading:
        """The range from `offset` on, to be read in pieces. Only of a source that is `checked`."""

    def check_unchanged(self) -> None:
        """`StorageError` if the bytes may be others than those that were checked."""

    def close(self) -> None:
        """End what it has open; nothing may still read from it."""


def check_homes(plan: WeightsPlan, source: WeightSource) -> None:
    """`PolicyError` if the disk is to be the home of weights, and there is no file."""
    nbytes = plan.bytes_at_home(Tier.DISK)
    if nbytes and not source.checked:
        raise PolicyError(
            f"{plan.file.path}: {in_gib(nbytes)} would lie on disk, where no file holds them; place all weights "
            "on device and host, or make a weight file"
        )
