"""Lists the tensors of a safetensors file; it reads none of them and knows no model.

The safetensors library checks the header: that tensors lie one after the other without gap or overlap and fill the
file. Its own reads map the file, and mapped pages count as the process's memory; so only the header is read through it,
and each tensor's offset follows from the lengths of those before it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError, safe_open

from flexref.errors import CheckpointError, StorageError
from flexref.storage.checkpoint.source import SourceTensor, contiguous_strides

_TYPES = MappingProxyType({"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"})

_OTHER_TYPE_BYTES = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
)
"""Types that never hold weights but may stand between them, with their bytes per element."""

_HEADER_LENGTH = struct.Struct("<Q")


def list_safetensors(path: Path) -> Iterator[SourceTensor]:
    """Every tensor of the file in file order; `CheckpointError` says what is wrong with it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER_LENGTH.size)
        # The library checks the whole header here, and that the file is as long as the header says.
        with safe_open(str(path), framework="numpy") as opened:
            described = [(name, opened.get_slice(name)) for name in opened.offset_keys()]
            entries = [(name, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in described]
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no valid safetensors file: {' '.join(str(error).split())[:200]}") from error
    offset = _HEADER_LENGTH.size + _HEADER_LENGTH.unpack(raw)[0]
    for name, kind, shape in entries:
        tensor = SourceTensor(str(path), name, _TYPES.get(kind, kind), shape, contiguous_strides(shape), offset)
        yield tensor
        offset += _bytes(tensor, kind)


def _bytes(tensor: SourceTensor, kind: str) -> int:
    if kind in _TYPES:
        return tensor.nbytes
    if kind not in _OTHER_TYPE_BYTES:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has type {kind}, of which this reader knows no size"
        )
    count = _OTHER_TYPE_BYTES[kind]
    for length in tensor.shape:
        count *= length
    return count
