"""Opens the second copy of a weight file, and says how it differs if it is none; it reads no tensor."""

import os
from collections.abc import Callable
from pathlib import Path

from flexref.errors import FlexrefError, StorageError, WeightFileError
from flexref.storage.trailer import TRAILER_BYTES, check_trailer, checksum_range
from flexref.storage.weightfile import WeightFile, open_weight_file, read_layout
from flexref.tiers.disk import WeightsOnDisk


def open_either(
    path: str | Path, mirror: str | Path | None, tell: Callable[[str], None]
) -> tuple[WeightFile, str | Path | None]:
    """The weight file at `path` and its mirror or, where that cannot be opened, the mirror alone, which `tell` hears.

    Raises what `open_weight_file` does; with a mirror, only if that is of no use either.
    """
    try:
        return open_weight_file(path), mirror
    except (StorageError, WeightFileError) as error:
        if mirror is None:
            raise
        try:
            file = open_weight_file(mirror)
        except FlexrefError as other:
            raise type(error)(f"{error}; and the mirror: {other}") from error
        if not _may_be_a_copy(path, mirror):
            raise type(error)(f"{error}; and the mirror {mirror} is no copy of it") from error
        tell(f"{error}; the mirror {mirror} is read in its place")
        return file, None


def _may_be_a_copy(path: str | Path, mirror: str | Path) -> bool:
    """Whether the first bytes of a file that is not whole, in which its metadata was, or else the last ones are those
    of a sound one; also if it cannot be read, or has none.
    """
    with open(mirror, "rb") as sound:
        metadata_bytes = check_trailer(sound.fileno(), str(mirror)).metadata_bytes
        try:
            with open(path, "rb") as broken:
                found = os.fstat(broken.fileno()).st_size
                least = min(found, metadata_bytes)
                if checksum_range(broken.fileno(), 0, least) == checksum_range(sound.fileno(), 0, least):
                    return True
                broken.seek(max(0, found - TRAILER_BYTES))
                sound.seek(-TRAILER_BYTES, os.SEEK_END)
                return broken.read() == sound.read()
        except OSError:
            return True


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
