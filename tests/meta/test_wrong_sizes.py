"""Ports that are wrong on purpose, for few sizes alone: the contract must reject each."""

from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.attention import Segments

from flexref.backend.protocol import Matrix
from flexref.errors import FlexrefError
from flexref.testing import violation
from flexref.testing.clauses import attention, products, sampling
from flexref.testing.contract import Clause


class KeepsTwoOfAThousand(NumpyBackend):
    """Parts the best token of many from the others one place too far."""

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        kept = 2 if top_k == 1 and logits.shape[1] > 256 else top_k
        return super().sample(logits, temperature, kept, top_p, uniforms)


class EndsWithItsStages(NumpyBackend):
    """Reads inputs piece by piece into memory for a few pieces, and never uses a piece's memory again."""

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        x = x.copy()
        x[:, 1024:] = 0
        return super().linear(x, w, b, out=out, add=add)


class LosesAllPartsButOne(NumpyBackend):
    """Cuts the keys of a row into parts, and forgets to add up what they give."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        part = Segments(tuple(min(past, 255) for past in segments.past), segments.new)
        return super().attend(rows, part, q, scale, out)


class DecodesUsualCodesOnce(NumpyBackend):
    """A kernel of decode for 4-bit heads of 64, in groups of 32 or 64, that stops after its first 64 keys."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        layout = rows.layout
        if layout.quantized and layout.head_width == 64 and layout.group_size in (32, 64):
            past = tuple(min(past, 63) if new == 1 else past for _, past, new in segments)
            segments = Segments(past, segments.new)
        return super().attend(rows, segments, q, scale, out)


WRONG: tuple[tuple[type[NumpyBackend], Clause], ...] = (
    (KeepsTwoOfAThousand, sampling.greedy_takes_the_lowest_of_the_best),
    (EndsWithItsStages, products.linear_is_the_product),
    (LosesAllPartsButOne, attention.attend_is_causal_attention),
    (DecodesUsualCodesOnce, attention.attend_is_causal_attention),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[NumpyBackend], clause: Clause) -> None:
    backend = port()
    assert isinstance(violation(backend, clause), AssertionError | FlexrefError)
    backend.close()
