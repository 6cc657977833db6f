"""Single tensors of a model, for whoever looks into one: read, checked, and dequantized if wanted; no job needs it."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.errors import UnknownTensor
from flexref.storage.checks import PartChecker
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.weightfile import Part, StoredTensor, WeightFile
from flexref.tiers.weight_source import WeightSource
from flexref.units import ALIGNMENT_BYTES

NAMES_SHOWN = 5
"""Bounds the names that an error shows."""


def shapes_of(file: WeightFile) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor by its name, in file order; a table that lies in tiles is listed by tile."""
    return {name: stored.shape for name, stored in file.tensors.items()}


def read_tensor(file: WeightFile, source: WeightSource, name: str) -> npt.NDArray[np.float32]:
    """The tensor `name`, or a whole table that lies in tiles (`tokens` for `tokens/0000` and so on), in float32.

    What is stored in groups is dequantized. Raises `UnknownTensor`, which names those that are called alike, and
    `WeightFileError` for bytes that do not match their checksum.
    """
    tiles = _tiles(file).get(name)
    if tiles is not None:
        return np.concatenate([_values(tile, source) for tile in tiles])
    if name not in file.tensors:
        raise UnknownTensor(f"the model has no tensor {name!r}; {_near(file, name)}")
    return _values(file.tensors[name], source)


def _tiles(file: WeightFile) -> dict[str, list[StoredTensor]]:
    """The tiles of every table, by the name that they begin with."""
    found: dict[str, list[StoredTensor]] = {}
    for tensor in file.tensors.values():
        if tensor.spec.is_tile:
            found.setdefault(tensor.name.rpartition("/")[0], []).append(tensor)
    return found


def read_stored(stored: StoredTensor, source: WeightSource) -> npt.NDArray[Any] | Quantized:
    """A tensor as the file holds it: numbers of its type, or groups of codes; checked as `read_tensor` does."""
    arrays = [_read(part, source) for part in stored.parts]
    if stored.group_size is None or stored.bits is None:
        return arrays[0]
    codes, scale, zero = arrays
    return Quantized(codes, scale, zero, stored.shape[-1], stored.group_size, stored.bits)


def _values(stored: StoredTensor, source: WeightSource) -> npt.NDArray[np.float32]:
    found = read_stored(stored, source)
    return dequantize(found) if isinstance(found, Quantized) else found.astype(np.float32)


def _read(part: Part, source: WeightSource) -> npt.NDArray[Any]:
    whole = np.empty(part.extent.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT_BYTES  # so that the file system may read it directly
    content = whole[start : start + part.extent.nbytes]
    source.read(part.extent.offset, content, partial(PartChecker, [part], part.extent.offset))
    return content.view(part.dtype).reshape(part.shape)


def _near(file: WeightFile, name: str) -> str:
    names = [*_tiles(file), *file.tensors]
    near = [known for known in names if known.startswith(str(name))] or get_close_matches(str(name), names, NAMES_SHOWN)
    return f"near: {', '.join(near[:NAMES_SHOWN])}" if near else f"its first are: {', '.join(names[:NAMES_SHOWN])}"
