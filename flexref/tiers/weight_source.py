"""What a weight store reads from: the bytes of a weight file, or of what stands for one; it knows no tensor."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from flexref.errors import PolicyError, in_gib
from flexref.tiers.transfer import DiskFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier


class WeightSource(DiskFile, Protocol):
    """Where a weight file's bytes come from, by their offsets in it: the file itself, or what stands for one.

    `checked`: whether they must match the checksums; else there is no file, and the disk can be no tensor's home.
    `direct`: whether large reads bypass the page cache.
    """

    @property
    def checked(self) -> bool: ...

    @property
    def direct(self) -> bool: ...

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        """into (R, row bytes): the bytes from each of the `offsets` on."""

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
