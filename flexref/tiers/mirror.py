"""Opens the second copy of a weight file, and says how it differs if it is none; it reads no tensor."""

from flexref.errors import WeightFileError
from flexref.storage.weightfile import WeightFile, read_layout
from flexref.tiers.disk import WeightsOnDisk


def open_mirror(first: WeightsOnDisk, path: str) -> WeightsOnDisk:
    """The copy of the weight file `first` at `path`.

    Raises `StorageError` or `WeightFileError` if it cannot be read, is damaged, is that file itself, or has other
    metadata, in which the checksums of all tensors are.
    """
    mirror = WeightsOnDisk(path)
    try:
        if mirror.is_same_file(first):
            raise WeightFileError(f"the mirror {path} is {first.path} itself: it must be a copy, best on another disk")
        if mirror.trailer() != first.trailer():
            difference = _difference(read_layout(first.path), read_layout(path))
            raise WeightFileError(f"the mirror {path} is no copy of {first.path}: {difference}")
    except BaseException:
        mirror.close()
        raise
    return mirror


def _difference(ours: WeightFile, its: WeightFile) -> str:
    """What differs between two sound weight files, in words."""
    facts = {
        "the model": (ours.spec.name, its.spec.name),
        "how matrices are stored": (ours.scheme, its.scheme),
        "the type": (ours.dtype, its.dtype),
        "the group size": (ours.group_size, its.group_size),
        "the number of datasets": (len(list(ours.parts)), len(list(its.parts))),
    }
    for name, (needed, found) in facts.items():
        if needed != found:
            return f"{name} is {found}, needed {needed}"
    for part, other in zip(ours.parts, its.parts, strict=True):
        if (part.dataset, part.checksum) != (other.dataset, other.checksum):
            return f"dataset {other.dataset} has checksum {other.checksum:016x}, needed {part.checksum:016x}"
    return "the tensors are the same, their metadata is not; copy the file itself"
