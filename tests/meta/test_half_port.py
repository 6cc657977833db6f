"""A right port of another kind, float16 activations and float32 sums as on a GPU: the contract must let it pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.testing import clause_name, clauses_for, violation
from flexref.testing.contract import Clause


class HalfBackend(NumpyBackend):
    """Numpy's operators on float32 copies of their operands, rounded to float16 where they store."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = replace(self.caps, compute_dtype="float16")

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        return super().gather(table.astype(out.dtype), ids, first, out)

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        return super().add_rows(x, table.astype(np.float16), ids)

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        half: Any = self.expand(w, np.empty(w.shape, np.float16))
        bias = None if b is None else b.astype(np.float32)
        result = np.empty((x.shape[0], w.shape[0]), np.float32) if out is None else out.astype(np.float32)
        super().linear(x.astype(np.float32), half.astype(np.float32), bias, out=result, add=add)
        out = self.empty(result.shape, "float16") if out is None else out
        out[...] = result
        return out

    def expand(self, w: Matrix, out: Any) -> Any:
        if isinstance(w, QuantizedMatrix):
            return super().expand(w, out)
        out[...] = w
        return out

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x.astype(np.float32), w, b, epsilon, np.empty(x.shape, np.float32))
        out = self.empty(x.shape, "float16") if out is None else out
        out[...] = result
        return out

    def activate(self, x: Any, activation: str) -> Any:
        x[...] = super().activate(x.astype(np.float32), activation)
        return x

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        out[...] = super().attend(rows, segments, q.astype(np.float32), scale, np.empty(q.shape, np.float32))
        return out


@pytest.fixture(scope="module")
def half() -> Any:
    backend = HalfBackend()
    yield backend
    backend.close()


@pytest.mark.parametrize("clause", clauses_for(NumpyBackend().caps), ids=clause_name)
def test_a_port_in_half_precision_passes(half: HalfBackend, clause: Clause) -> None:
    error = violation(half, clause, examples=15)
    if error is not None:
        raise error
