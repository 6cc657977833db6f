"""Dense tensors by rows, from whatever holds them, under the names of a weight file; it knows no format."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import TensorSpec
from flexref.storage.quant import Array


class Rows(Protocol):
    """Some rows of a tensor where they come from."""

    @property
    def name(self) -> str:
        """What the tensor is called there."""

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take there."""

    def slabs(self) -> Iterator[tuple[str, Array]]:
        """The rows a slab at a time, each with what it is called in messages."""


Plan = Mapping[str, Sequence[Rows]]
"""For each tensor of a weight file, in its order, the rows that make it, one after the other."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A model's dense tensors: `plan` says what makes the tensors of a file, `names` are all that there are."""

    spec: ModelSpec
    plan: Callable[[Sequence[TensorSpec]], Plan]
    names: tuple[str, ...]

    def unused(self, plan: Plan) -> tuple[str, ...]:
        """The names of what a file has no use for."""
        used = {rows.name for parts in plan.values() for rows in parts}
        return tuple(sorted(name for name in self.names if name not in used))


def whole(parts: Sequence[Rows]) -> Array:
    """A whole tensor in float32."""
    return np.concatenate([slab.astype(np.float32) for rows in parts for _, slab in rows.slabs()])
