"""What a PyTorch pickle may name and what comes of it: storages and views of them; it knows no instruction."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flexref.errors import CheckpointError

STORAGE_TYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "HalfStorage": ("float16", 2),
        "BFloat16Storage": ("bfloat16", 2),
        "FloatStorage": ("float32", 4),
        "DoubleStorage": ("float64", 8),
        "LongStorage": ("int64", 8),
        "IntStorage": ("int32", 4),
        "ShortStorage": ("int16", 2),
        "CharStorage": ("int8", 1),
        "ByteStorage": ("uint8", 1),
        "BoolStorage": ("bool", 1),
    }
)
"""PyTorch's names for typed runs of bytes: the type's name here and its bytes per element."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name that the pickle may use: what it makes, and for a storage type its name."""

    makes: str
    storage_type: str = ""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `elements` values of type `dtype` in the archive's entry `key`."""

    dtype: str
    itemsize: int
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage: `offset` and `strides` in elements; all elements lie inside the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


NAMES: Mapping[tuple[str, str], Named] = MappingProxyType(
    {
        ("collections", "OrderedDict"): Named("dictionary"),
        ("torch._utils", "_rebuild_tensor_v2"): Named("tensor"),
        ("torch._utils", "_rebuild_parameter"): Named("parameter"),
        **{("torch", name): Named("storage", name) for name in STORAGE_TYPES},
    }
)
"""Everything that a checkpoint of tensors needs to name."""


def view(storage: Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> PickledTensor:
    """The tensor that a pickle describes; `CheckpointError` unless all its elements lie inside its storage."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(
            f"its pickle has a tensor of shape {reprlib.repr(shape)}, strides {reprlib.repr(strides)}"
        )
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
        raise CheckpointError(
            f"its pickle has a tensor that ends at element {reprlib.repr(last)} of a storage of {storage.elements}"
        )
    return PickledTensor(storage, offset, shape, strides)
