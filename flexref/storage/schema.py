"""The layout of a weight file: its header, which datasets it holds, their shapes and types; it opens no file.

README.md in this folder says the same in MUST and MAY. Datasets lie in the order of
`flexref.architecture.stages.file_stages`, the tokenizer last; each starts at a multiple of `ALIGNMENT_BYTES`, and only
the gaps that this needs lie inside a stage.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from flexref.architecture.spec import ModelSpec, check_token_ids
from flexref.architecture.stages import Stage, TensorSpec, default_tile_rows, file_stages, layer_stage
from flexref.errors import CheckpointError, WeightFileError
from flexref.policy import WEIGHT_SCHEMES
from flexref.storage.quant import group_count, packed_width

FORMAT_NAME = "flexref-weights"
FORMAT_VERSION = 1

SCHEMES = tuple(WEIGHT_SCHEMES)
BITS: Mapping[str, int] = MappingProxyType({"int4": 4, "int8": 8})
"""Bits of a code in each layout that has codes."""

DTYPES = ("float16", "float32")
"""Types of dense tensors, and of the scales and zeros of quantized ones."""

CHECKSUM_ATTRIBUTE = "xxh3_64"
"""Attribute of every dataset: unsigned 64-bit XXH3 of its bytes, seed 0."""

GROUP_PARTS = ("codes", "scale", "zero")
"""The datasets that hold a matrix in groups, in file order."""

TOKENIZER = "tokenizer"
"""Dataset of bytes that holds a tokenizer.json, where the file has one."""

LARGEST_GROUP = 1 << 16
"""Bounds a header's group size: far beyond any useful group, small enough that no sum overflows."""

MODEL_ATTRIBUTE_BYTES = 1 << 15
"""Bounds the model's JSON: HDF5 keeps an attribute of at most 64 KiB inside its object's header."""


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What the root attributes of a weight file say; `group_size` is None where the scheme has no groups."""

    spec: ModelSpec
    scheme: str
    group_size: int | None
    dtype: str
    tile_rows: int

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise WeightFileError(f"unknown quantization scheme {self.scheme!r}; known: {', '.join(SCHEMES)}")
        if self.dtype not in DTYPES:
            raise WeightFileError(f"unknown weight type {self.dtype!r}; known: {', '.join(DTYPES)}")
        if (self.group_size is None) != (self.scheme == "none"):
            raise WeightFileError(f"scheme {self.scheme!r} does not go with group size {self.group_size}")
        if self.group_size is not None and not 1 <= self.group_size <= LARGEST_GROUP:
            raise WeightFileError(f"group size must be from 1 to {LARGEST_GROUP}, found {self.group_size}")
        if not 1 <= self.tile_rows <= self.spec.vocabulary:
            raise WeightFileError(f"rows per tile must be from 1 to {self.spec.vocabulary}, found {self.tile_rows}")

    @classmethod
    def of(cls, spec: ModelSpec, scheme: str, group_size: int | None, dtype: str) -> "FileHeader":
        """The header of a new file: `group_size` counts only where the scheme has groups; tiles as large as a layer."""
        draft = cls(spec, scheme, None if scheme == "none" else group_size, dtype, tile_rows=1)
        layer_bytes = sum(part.nbytes for tensor in layer_stage(spec, 0).tensors for part in draft.parts(tensor))
        rows = default_tile_rows(spec, layer_bytes, draft.dense_dtype.itemsize)
        return cls(spec, scheme, draft.group_size, dtype, rows)

    @property
    def bits(self) -> int:
        """Bits of a code, if matrices are stored in groups."""
        return BITS[WEIGHT_SCHEMES[self.scheme]]

    @property
    def dense_dtype(self) -> "np.dtype[Any]":
        """The little-endian type of dense tensors, scales and zeros."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def tensor_count(self) -> int:
        """An estimate from below of how many tensors the file holds, found without listing them."""
        return self.spec.layers + self.spec.vocabulary // self.tile_rows

    def scheme_of(self, tensor: TensorSpec) -> str:
        """How `tensor` is stored: only the matrices of decoder layers are ever quantized."""
        return self.scheme if tensor.quantizable else "none"

    def parts(self, tensor: TensorSpec) -> tuple["PartSpec", ...]:
        """The datasets that hold `tensor`: itself, or `codes`, `scale` and `zero` in a group of its name."""
        if self.group_size is None or not tensor.quantizable:
            return (PartSpec(tensor.name, tensor.shape, self.dense_dtype),)
        outputs, width = tensor.shape
        groups, held = (outputs, group_count(width, self.group_size)), packed_width(width, self.group_size, self.bits)
        shapes = ((outputs, held), groups, groups)
        dtypes = (np.dtype(np.uint8), self.dense_dtype, self.dense_dtype)
        return tuple(
            PartSpec(f"{tensor.name}/{part}", shape, dtype)
            for part, shape, dtype in zip(GROUP_PARTS, shapes, dtypes, strict=True)
        )

    def stages(self) -> Iterator[Stage]:
        """Every tensor once, by stages, in file order."""
        return file_stages(self.spec, self.tile_rows)


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One dataset as the header asks for it."""

    dataset: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    @property
    def nbytes(self) -> int:
        """Bytes of the dataset."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


def spec_to_json(spec: ModelSpec) -> str:
    """The model's fields as one ASCII JSON object; `CheckpointError` if it is longer than an attribute may be."""
    text = json.dumps(asdict(spec), sort_keys=True)
    if len(text) > MODEL_ATTRIBUTE_BYTES:
        raise CheckpointError(
            f"model {spec.name[:64]!r}: its description takes {len(text)} bytes, at most {MODEL_ATTRIBUTE_BYTES} fit"
        )
    return text


def spec_from_json(text: str) -> ModelSpec:
    """The model that a `model` attribute describes; `WeightFileError` names what is missing, extra or ill-typed."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"the model attribute is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise WeightFileError(f"the model attribute must hold a JSON object, found {type(values).__name__}")
    known = [field.name for field in fields(ModelSpec)]
    wrong = sorted(set(known) ^ set(values))
    if wrong:
        raise WeightFileError(f"the model attribute lacks or should not have {wrong[0][:64]!r}")
    return _checked_spec(values)


def _checked_spec(values: Mapping[str, Any]) -> ModelSpec:
    ids = values["eos_token_ids"]
    if not isinstance(ids, list):
        raise WeightFileError(f"the model attribute's eos_token_ids must be a list, found {type(ids).__name__}")
    try:
        spec = ModelSpec(**{**values, "eos_token_ids": tuple(ids)})
        check_token_ids(spec)
    except CheckpointError as error:
        raise WeightFileError(f"the model attribute: {error}") from error
    return spec
