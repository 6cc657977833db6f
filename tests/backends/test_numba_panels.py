"""Products in panels, for processors with narrow registers: each row has the bits that it has alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flexref.backend.compiling import CompileTime
from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.storage.quant import dequantize, quantize

products = pytest.importorskip("flexref_numba.products", reason="numba is not installed")

FORMS = ["float32", "float16", "4 bits in groups of 64", "8 bits in groups of 64", "4 bits in groups of 40"]

SHAPES = [(1, 64), (2, 40), (3, 130), (5, 17), (7, 9), (50, 768), (97, 1601), (86, 2048)]
"""Outputs and inputs: fewer than a tile has, rows that are no whole vectors, several blocks, several pieces."""


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[Any, Any]]:
    """Products in panels on two threads, and without them on one."""
    functions = pytest.importorskip("flexref_numba.compiled").Functions(CompileTime())
    made = [pytest.importorskip("flexref_numba.threads").Threads(count, functions) for count in (2, 1)]
    yield products.Products(functions, made[0], paneled=True), products.Products(functions, made[1], paneled=False)
    for threads in made:
        threads.close()


def stored(w: Any, form: str) -> tuple[Matrix, Any]:
    """A matrix in one form, and the numbers that it stands for."""
    if form.startswith("float"):
        return w.astype(form), w.astype(form).astype(np.float32)
    bits, group = int(form[0]), int(form.rsplit(maxsplit=1)[-1])
    coded = quantize(w, group, np.float16, "w", bits)
    return QuantizedMatrix(coded.codes, coded.scale, coded.zero, w.shape[1], group, bits), dequantize(coded)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [4, 9, 33, 70])
def test_many_rows_in_panels_have_the_bits_of_each_row_alone(ports: tuple[Any, Any], form: str, tokens: int) -> None:
    panels, tiles = ports
    draw = np.random.default_rng(tokens)
    for outputs, inputs in SHAPES:
        x, w = (draw.standard_normal((rows, inputs), np.float32) for rows in (tokens, outputs))
        bias, before = draw.standard_normal(outputs, np.float32), draw.standard_normal((tokens, outputs), np.float32)
        matrix, numbers = stored(w, form)
        for b, add in ((None, False), (bias, False), (bias, True)):
            found, alone = before.copy(), before.copy()
            panels.linear(x, matrix, b, found, add=add)
            for row in range(tokens):
                tiles.linear(x[row : row + 1], matrix, b, alone[row : row + 1], add=add)
            assert found.tobytes() == alone.tobytes(), (outputs, inputs, add)
        np.testing.assert_allclose(found, before + x @ numbers.T + bias, atol=1e-3)


def test_panels_lie_within_the_scratch_that_is_asked_for(ports: tuple[Any, Any]) -> None:
    kernels = pytest.importorskip("flexref_numba.kernels.panels")
    backend = pytest.importorskip("flexref_numba.backend")
    for inputs in (1, 15, 16, 768, 769, 2048, 8192, 49152):
        rows = kernels.panel_outputs(inputs)
        assert rows % kernels.OUTPUTS == 0
        assert rows >= kernels.OUTPUTS
        assert kernels.panel_scratch_bytes(inputs) <= backend.THREAD_SCRATCH_BYTES, inputs
