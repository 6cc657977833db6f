"""Ports that are wrong on purpose in one operator on rows, each with one bug: the contract must reject each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.errors import FlexrefError
from flexref.testing import violation
from flexref.testing.clauses import pointwise, products
from flexref.testing.contract import CONTRACT, Clause


class GatherReturnsTheTable(NumpyBackend):
    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        super().gather(table, ids, first, out)
        return table[:1]


class GatherClearsOtherRows(NumpyBackend):
    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        out[...] = 0
        return super().gather(table, ids, first, out)


class GatherSkipsTheLastRow(NumpyBackend):
    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        return super().gather(table[: max(1, len(table) - 1)], ids, first, out)


class GatherForgetsTheFirstRow(NumpyBackend):
    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        return super().gather(table, ids % max(1, len(table)), 0, out)


class AddRowsOverwrites(NumpyBackend):
    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        x[...] = table[ids]
        return x


class AddRowsByPlace(NumpyBackend):
    """Takes row t of the table and not row ids[t]: right as long as a prompt starts at position 0."""

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        return super().add_rows(x, table, np.minimum(np.arange(len(ids)), len(table) - 1))


class LinearIsTransposed(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b, out=out, add=add).T


def swapped(w: Matrix) -> Matrix:
    """The matrix with the nibbles of every byte exchanged."""
    if not isinstance(w, QuantizedMatrix):
        return w
    codes: Any = w.codes
    return replace(w, codes=codes >> 4 | codes << 4)


class NibblesSwapped(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, swapped(w), b, out=out, add=add)

    def expand(self, w: Matrix, out: Any) -> Any:
        return super().expand(swapped(w), out)


def cut_to_nibbles(w: Matrix) -> Matrix:
    """The matrix as a port reads it that knows codes of 4 bits alone."""
    if isinstance(w, QuantizedMatrix) and w.bits == 8:
        return replace(w, codes=w.codes & 15)  # type: ignore[operator]
    return w


class ReadsBytesAsNibbles(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, cut_to_nibbles(w), b, out=out, add=add)

    def expand(self, w: Matrix, out: Any) -> Any:
        return super().expand(cut_to_nibbles(w), out)


class LinearIgnoresStrides(NumpyBackend):
    """Reads the rows of `x` one after the other, also where it is a slice of a wider array."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        packed = np.lib.stride_tricks.as_strided(x, strides=(x.shape[1] * x.itemsize, x.itemsize))
        return super().linear(packed, w, b, out=out, add=add)


class LinearInHalfPrecision(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        with np.errstate(over="ignore"):
            return super().linear(np.float32(np.float16(x)), w, b, out=out, add=add)


class LinearWritesWholeVectors(NumpyBackend):
    """Stores four outputs at a time, past the end of a row too, as a vectorized store without a tail would."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        result = super().linear(x, w, b, out=out, add=add)
        if out is not None and result.shape[1] % 4:
            width = -(-result.shape[1] // 4) * 4
            np.lib.stride_tricks.as_strided(result, (result.shape[0], width))[-1, result.shape[1] :] = 0
        return result


class LinearIgnoresAdd(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b, out=out)


class LinearAddsWithoutBias(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, None if add else b, out=out, add=add)


class ExpandsToHalf(NumpyBackend):
    def expand(self, w: Matrix, out: Any) -> Any:
        super().expand(w, out)
        with np.errstate(over="ignore"):
            out[...] = out.astype(np.float16)
        return out


class FusesWhereItExpands(NumpyBackend):
    """Sums in float64 where it reads codes: better, but not the bits of expanded weights."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        if not isinstance(w, QuantizedMatrix):
            return super().linear(x, w, b, out=out, add=add)
        wide = super().expand(w, np.empty(w.shape, np.float32)).astype(np.float64)
        product = x @ wide.T + (0 if b is None else b)
        out = self.empty((x.shape[0], w.shape[0]), "float32") if out is None else out
        out[...] = product + (out if add else 0)
        return out


class ForgetsTheBiasOfOneToken(NumpyBackend):
    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b if x.shape[0] > 1 else None, out=out, add=add)


class SumsInAnyOrder(NumpyBackend):
    """As atomic sums do: within the bound, but never the same bits again."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        order = self._random.permutation(x.shape[1])
        full = super().expand(w, np.empty(w.shape, np.float32))
        return super().linear(x[:, order], full[:, order], b, out=out, add=add)


class NormIsFlat(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        return super().layer_norm(x, w, b, epsilon, out).reshape(-1)


class VarianceOfASample(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        width = x.shape[1]
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).sum(-1, keepdims=True) / max(1, width - 1) + np.float32(epsilon))
        out = self.empty(x.shape, "float32") if out is None else out
        out[...] = normal * (1 if w is None else w) + (0 if b is None else b)
        return out


class VarianceInOnePass(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        mean = x.mean(-1, keepdims=True)
        variance = np.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
        normal = (x - mean) / np.sqrt(variance + np.float32(epsilon))
        out = self.empty(x.shape, "float32") if out is None else out
        out[...] = normal * (1 if w is None else w) + (0 if b is None else b)
        return out


class EpsilonOutsideTheRoot(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        return super().layer_norm(x, w, b, epsilon * epsilon, out)


class NormInPlaceAlways(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        return super().layer_norm(x, w, b, epsilon, x if out is None else out)


class ApproximatesGelu(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        return super().activate(x, "gelu_tanh" if activation == "gelu" else activation)


class ExponentialOverflows(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        if activation != "silu":
            return super().activate(x, activation)
        with np.errstate(over="ignore", invalid="ignore"):
            grown = np.exp(x)
            x[...] = x * grown / (1 + grown)
        return x


class ActivatesACopy(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        return super().activate(x.copy(), activation)


class ForgetsTheBiasUnlessApart(NumpyBackend):
    """Wrong only for rows that need no bits of their own."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b if self._rows_apart else None, out=out, add=add)


class ForgetsTheLastOfManyInputs(NumpyBackend):
    """A kernel for weights as models have them, wide ones in large groups, whose loop ends too early."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        if isinstance(w, QuantizedMatrix) and w.group_size % 32 == 0 and w.width % 256 == 0:
            x = x.copy()
            x[:, -1] = 0
        return super().linear(x, w, b, out=out, add=add)


class LinearTurnsOddNumbersOfRows(NumpyBackend):
    """Adds up from the last input to the first where the number of tokens is odd."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        if isinstance(w, np.ndarray) and x.shape[0] % 2:
            x, w = np.ascontiguousarray(x[:, ::-1]), np.ascontiguousarray(w[:, ::-1])
        return super().linear(x, w, b, out=out, add=add)


class ForgetsWhatASecondThreadTakes(NumpyBackend):
    """Shares a product between threads, if it is worth that, and does not give the others their blocks."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        result = super().linear(x, w, b, out=out, add=add)
        if x.size * w.shape[0] >= 1 << 22:
            result[:, w.shape[0] // 2 :] = 0
        return result


class NormStopsInWideRows(NumpyBackend):
    """A block of threads holds no more of a row than this, and its loop over the rest ends too early."""

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x, w, b, epsilon, out)
        result[:, 16384:] = 0
        return result


class NormsManyRowsFiner(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        out = self.empty(x.shape, "float32") if out is None else out
        if len(x) == 1:
            return super().layer_norm(x, w, b, epsilon, out)
        out[...] = super().layer_norm(x.astype(np.float64), w, b, epsilon, np.empty(x.shape))
        return out


WRONG: tuple[tuple[type[NumpyBackend], Clause], ...] = (
    (GatherReturnsTheTable, products.row_operators_keep_their_shapes),
    (GatherClearsOtherRows, products.gather_takes_the_named_rows),
    (GatherClearsOtherRows, products.gather_tile_by_tile_is_one_gather),
    (GatherSkipsTheLastRow, products.gather_tile_by_tile_is_one_gather),
    (GatherForgetsTheFirstRow, products.gather_takes_the_named_rows),
    (AddRowsOverwrites, products.add_rows_adds_the_named_rows),
    (AddRowsByPlace, products.add_rows_adds_the_named_rows),
    (LinearIsTransposed, products.products_have_their_shapes),
    (NibblesSwapped, products.linear_is_the_product),
    (NibblesSwapped, products.expand_is_the_matrix),
    (ReadsBytesAsNibbles, products.linear_is_the_product),
    (ReadsBytesAsNibbles, products.expand_is_the_matrix),
    (LinearIgnoresStrides, products.linear_is_the_product),
    (LinearInHalfPrecision, products.linear_is_the_product),
    (LinearWritesWholeVectors, products.linear_is_the_product),
    (LinearIgnoresAdd, products.linear_adds_to_its_result),
    (LinearAddsWithoutBias, products.linear_adds_to_its_result),
    (ForgetsTheBiasUnlessApart, products.linear_is_the_product),
    (ForgetsTheBiasUnlessApart, products.linear_adds_to_its_result),
    (ForgetsTheLastOfManyInputs, products.linear_is_the_product),
    (ForgetsWhatASecondThreadTakes, products.linear_adds_to_its_result),
    (ExpandsToHalf, products.expand_is_the_matrix),
    (ExpandsToHalf, products.linear_of_expanded_weights_has_the_same_bits),
    (FusesWhereItExpands, products.linear_of_expanded_weights_has_the_same_bits),
    (ForgetsTheBiasOfOneToken, products.products_do_not_depend_on_other_rows),
    (SumsInAnyOrder, products.products_repeat_their_bits),
    (NormIsFlat, pointwise.norms_and_activations_have_their_shapes),
    (VarianceOfASample, pointwise.layer_norm_is_the_norm),
    (VarianceInOnePass, pointwise.layer_norm_is_the_norm),
    (EpsilonOutsideTheRoot, pointwise.layer_norm_is_the_norm),
    (NormInPlaceAlways, pointwise.layer_norm_is_the_norm),
    (NormStopsInWideRows, pointwise.layer_norm_is_the_norm),
    (ApproximatesGelu, pointwise.activations_are_their_functions),
    (ExponentialOverflows, pointwise.activations_are_their_functions),
    (ActivatesACopy, pointwise.activations_are_their_functions),
    (LinearTurnsOddNumbersOfRows, products.a_row_of_a_product_is_its_own),
    (NormsManyRowsFiner, pointwise.a_row_of_a_norm_is_its_own),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[NumpyBackend], clause: Clause) -> None:
    backend = port()
    assert isinstance(violation(backend, clause), AssertionError | FlexrefError)
    backend.close()


def test_a_port_that_is_wrong_in_large_products_is_rejected_by_as_many_examples_as_a_conformance_run_has() -> None:
    backend = ForgetsWhatASecondThreadTakes()
    assert isinstance(violation(backend, products.linear_adds_to_its_result, 100), AssertionError)
    backend.close()


def test_every_clause_on_rows_rejects_a_port() -> None:
    here = {clause for clause in CONTRACT if clause.__module__ in (products.__name__, pointwise.__name__)}
    assert {clause for _, clause in WRONG} == here
