"""Reads a weight file's HDF5 metadata with distrust: every object is compared with what the header asks for.

It knows HDF5 and the schema, and reads no dataset. It never follows a link that the header does not ask for, so a file
whose objects form a cycle, or whose names run into millions, is refused at the first foreign name.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import h5py
import numpy as np

from flexref.errors import FlexrefError, StorageError, WeightFileError, how_many
from flexref.storage.schema import (
    CHECKSUM_ATTRIBUTE,
    FORMAT_NAME,
    FORMAT_VERSION,
    MODEL_ATTRIBUTE_BYTES,
    TOKENIZER,
    FileHeader,
    PartSpec,
    spec_from_json,
)
from flexref.storage.trailer import TRAILER_BYTES, Trailer
from flexref.units import aligned

REFUSED = re.compile(r"\berrno = ([1-9][0-9]{0,3})\b")
"""How HDF5 tells, amid its own structures, that it was the operating system that could not read."""

FAILING = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO})
"""Of those, what a file system says that fails; others may be the fault of metadata that lead HDF5 astray."""

OBJECT_BYTES = 64
"""Metadata bytes that an HDF5 object needs at the very least: bounds how many tensors a header may claim."""


@dataclass(frozen=True, slots=True)
class FoundPart:
    """One dataset as found: what it was checked against, its offset in the file, the checksum it claims."""

    spec: PartSpec
    offset: int
    checksum: int


def read_metadata(path: str, trailer: Trailer) -> tuple[FileHeader, dict[str, FoundPart]]:
    """The header and every dataset of the file, checked; `WeightFileError` names the first thing that is wrong.

    `StorageError` where the file system fails. The metadata must have passed `check_trailer`. Names of datasets map to
    what was found, in file order.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            header = _header(file)
            if header.tensor_count > trailer.metadata_bytes // OBJECT_BYTES:
                raise WeightFileError(f"its metadata is too short for {header.tensor_count} tensors or more")
            stages = [[part for tensor in stage.tensors for part in header.parts(tensor)] for stage in header.stages()]
            if file.id.links.exists(TOKENIZER.encode()):
                stages.append([_tokenizer_spec(file, trailer)])
            expected = [part for stage in stages for part in stage]
            _check_names(file, {part.dataset for part in expected})
            found = {part.dataset: _found(file, part) for part in expected}
    except FlexrefError as error:
        raise WeightFileError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        # h5py has no base class of its own: these are what it raises for metadata that HDF5 cannot make sense of.
        refused = REFUSED.search(str(error))
        if refused is not None and int(refused[1]) in FAILING:
            raise StorageError(f"cannot read {path}: {os.strerror(int(refused[1]))}") from error
        raise WeightFileError(f"{path}: HDF5 cannot read its metadata: {_one_line(error)}") from error
    for stage in stages:
        _check_offsets(path, [found[part.dataset] for part in stage], trailer)
    _check_order(path, list(found.values()))
    return header, found


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
    return " ".join(str(text).split())[:200]


def _text_attribute(file: h5py.File, name: str) -> str:
    """A fixed-length string attribute of the root; nothing of variable length is ever read."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise WeightFileError(f"the root attribute {name} is missing: this is no flexref weight file, or a damaged one")
    attribute = h5py.h5a.open(file.id, name.encode())
    kind = attribute.get_type()
    fixed = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not fixed or attribute.shape != () or kind.get_size() > MODEL_ATTRIBUTE_BYTES:
        raise WeightFileError(f"the root attribute {name} must be one fixed-length string")
    value = np.empty((), f"S{kind.get_size()}")
    attribute.read(value)
    return bytes(value.item()).decode("ascii", "replace")


def _integer_attribute(owner: h5py.File | h5py.Dataset, name: str) -> int:
    where = "the root" if isinstance(owner, h5py.File) else f"dataset {owner.name.lstrip('/')}"
    if not h5py.h5a.exists(owner.id, name.encode()):
        raise WeightFileError(f"{where} lacks the attribute {name}")
    attribute = h5py.h5a.open(owner.id, name.encode())
    if not isinstance(attribute.get_type(), h5py.h5t.TypeIntegerID) or attribute.shape != ():
        raise WeightFileError(f"{where}: the attribute {name} must be one integer")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return int(value)


def _header(file: h5py.File) -> FileHeader:
    found = _text_attribute(file, "format")
    if found != FORMAT_NAME:
        raise WeightFileError(f"its format is {found[:64]!r}, needed {FORMAT_NAME!r}")
    version = _integer_attribute(file, "format_version")
    if version != FORMAT_VERSION:
        raise WeightFileError(f"it has format version {version}; this flexref reads version {FORMAT_VERSION}")
    scheme = _text_attribute(file, "scheme")
    group_size = _integer_attribute(file, "group_size")
    return FileHeader(
        spec_from_json(_text_attribute(file, "model")),
        scheme,
        None if scheme == "none" and group_size == 0 else group_size,
        _text_attribute(file, "dtype"),
        _integer_attribute(file, "tile_rows"),
    )


def _tokenizer_spec(file: h5py.File, trailer: Trailer) -> PartSpec:
    """The tokenizer's length is its own: it is bounded by the file's."""
    _check_link(file, TOKENIZER.encode(), TOKENIZER)
    dataset = _dataset(file, TOKENIZER)
    if len(dataset.shape) != 1 or not 0 < dataset.shape[0] <= trailer.file_bytes:
        raise WeightFileError(f"dataset {TOKENIZER} has shape {dataset.shape}, needed the bytes of a tokenizer.json")
    return PartSpec(TOKENIZER, (int(dataset.shape[0]),), np.dtype(np.uint8))


def _check_names(file: h5py.File, expected: set[str]) -> None:
    """Every name must be a hard link to what the header asks for, and all that it asks for must be there."""
    groups = {name[:at] for name in expected for at, letter in enumerate(name) if letter == "/"}
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for name in _links(file[prefix or "/"], prefix):
            if name in groups:
                waiting.append(name)
            elif name in expected:
                seen.add(name)
            else:
                raise WeightFileError(f"holds {name[:128]!r}, which a file of this model and scheme does not have")
    missing = expected - seen
    if missing:
        raise WeightFileError(f"lacks {how_many(len(missing), 'dataset')}, the first is {min(missing)}")


def _links(group: h5py.Group, prefix: str) -> Iterator[str]:
    if not isinstance(group, h5py.Group):
        raise WeightFileError(f"{prefix} must be a group")
    for raw in group.id:
        name = f"{prefix}/{raw.decode('utf-8', 'replace')}" if prefix else raw.decode("utf-8", "replace")
        _check_link(group, raw, name)
        yield name


def _check_link(group: h5py.Group, raw: bytes, name: str) -> None:
    if group.id.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
        raise WeightFileError(f"{name[:128]} is a soft or external link; only the file's own objects are read")


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise WeightFileError(f"{name} must be a dataset")
    return dataset


def _found(file: h5py.File, part: PartSpec) -> FoundPart:
    """Check one dataset's shape, type and storage."""
    dataset = _dataset(file, part.dataset)
    if dataset.shape != part.shape or dataset.maxshape != part.shape:
        raise WeightFileError(f"dataset {part.dataset} has shape {dataset.shape}, needed {part.shape}")
    if dataset.dtype != part.dtype or dataset.id.get_type().get_size() != part.dtype.itemsize:
        raise WeightFileError(f"dataset {part.dataset} has type {dataset.dtype}, needed {part.dtype}")
    creation = dataset.id.get_create_plist()
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_nfilters():
        raise WeightFileError(f"dataset {part.dataset} must be contiguous and unfiltered")
    if creation.get_external_count():
        raise WeightFileError(f"dataset {part.dataset} lies in another file; only the file's own bytes are read")
    offset = dataset.id.get_offset()
    if offset is None:
        raise WeightFileError(f"dataset {part.dataset} was never written")
    return FoundPart(part, int(offset), _integer_attribute(dataset, CHECKSUM_ATTRIBUTE))


def _check_offsets(path: str, stage: list[FoundPart], trailer: Trailer) -> None:
    """Every dataset aligned, between metadata and trailer, and a stage's datasets one run of bytes."""
    end = trailer.file_bytes - TRAILER_BYTES
    previous: FoundPart | None = None
    for part in stage:
        name, offset, nbytes = part.spec.dataset, part.offset, part.spec.nbytes
        if offset != aligned(offset):
            raise WeightFileError(f"{path}: dataset {name} lies at byte {offset}, which is not aligned")
        if offset < trailer.metadata_bytes or offset + nbytes > end:
            raise WeightFileError(
                f"{path}: dataset {name} claims bytes {offset} to {offset + nbytes}; "
                f"data lies from {trailer.metadata_bytes} to {end}"
            )
        if previous is not None and offset != aligned(previous.offset + previous.spec.nbytes):
            raise WeightFileError(f"{path}: dataset {name} does not follow {previous.spec.dataset} in the file")
        previous = part


def _check_order(path: str, found: list[FoundPart]) -> None:
    """Stages follow each other in file order, so no two datasets overlap."""
    for before, after in pairwise(found):
        if after.offset < before.offset + before.spec.nbytes:
            raise WeightFileError(f"{path}: dataset {after.spec.dataset} overlaps or precedes {before.spec.dataset}")
