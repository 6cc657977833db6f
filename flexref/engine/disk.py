"""The disk of a session: where its weights are read from, and where what it spills lies; it knows no job."""

from pathlib import Path
from typing import Any, Protocol

from flexref.errors import PolicyError
from flexref.storage.random_weights import RandomFile, RandomWeights
from flexref.storage.weightfile import WeightFile
from flexref.tiers.checked_spill import CheckedSpill
from flexref.tiers.faults import OnFault
from flexref.tiers.spill_file import SpillFile
from flexref.tiers.weight_copies import WeightCopies
from flexref.tiers.weight_source import WeightSource


class Disk(Protocol):
    """The disk of a session: where its weights are read from, and where what it spills lies."""

    source: WeightSource
    spills_direct: bool
    """Whether all that was spilled so far went past the page cache."""

    def allocate(self, nbytes: int) -> Any:
        """A place for so many bytes."""

    def release(self, place: Any) -> None:
        """Give it back."""


class RealDisk:
    """Weights come from their file, or are random; what is spilled lies in files below `folder`."""

    def __init__(self, file: WeightFile, folder: Path, mirror: str | None, on_fault: OnFault) -> None:
        self.folder, self._on_fault = folder, on_fault
        self.spills_direct = True
        if isinstance(file, RandomFile):  # filled in place
            if mirror is not None:
                raise PolicyError(f"{file.path} are in no file: there is nothing that {mirror} could mirror")
            self.source: WeightSource = RandomWeights(file)
        else:
            self.source = WeightCopies.open(file, mirror, on_fault)

    def allocate(self, nbytes: int) -> CheckedSpill:
        """An unnamed file."""
        file = SpillFile(self.folder, nbytes)
        self.spills_direct = self.spills_direct and file.direct
        return CheckedSpill(file, self._on_fault)

    def release(self, place: CheckedSpill) -> None:
        """Close it, which removes it."""
        place.close()
