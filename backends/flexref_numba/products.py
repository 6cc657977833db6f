"""`linear` and `expand` on the host's processor: matrices as they are stored, on some threads; it knows no model."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref_numba.compiled import Functions
from flexref_numba.kernels.products import block_outputs, direct_form, make_expand, make_product, scratch_bytes
from flexref_numba.kernels.tiles import Form
from flexref_numba.kernels.vectors import wide_registers
from flexref_numba.threads import Threads, address_of, kind_of, worth

Numbers = npt.NDArray[Any]

STEP_OUTPUTS = 24
"""Threads take rows of a matrix in multiples of it, which are whole tiles of any kind."""


class Stored(NamedTuple):
    """A matrix (O, I) in memory: its form, and addresses and distances in bytes as `make_product` takes them."""

    form: Form
    direct: bool
    values: tuple[int, ...]
    """w, w_pitch, scale, zero, pair_pitch, pair_step, group."""
    shape: tuple[int, int]

    @classmethod
    def of(cls, w: Matrix) -> "Stored":
        """Where a matrix of any type lies."""
        outputs, inputs = w.shape
        if not isinstance(w, QuantizedMatrix):
            assert isinstance(w, np.ndarray)
            values = address_of(w), w.strides[0], 0, 0, 0, 0, 0
            return cls(Form(kind_of(w)), True, values, (outputs, inputs))
        codes, scale, zero = w.codes, w.scale, w.zero
        assert isinstance(codes, np.ndarray)
        assert isinstance(scale, np.ndarray)
        assert isinstance(zero, np.ndarray)
        assert scale.strides == zero.strides, "scales and zeros lie alike"
        form = Form(f"codes{w.bits}", min(w.group_size, inputs), kind_of(scale))
        direct, group = direct_form(form, inputs), form.group
        if not direct:
            form = Form(form.kind)
        pitches = scale.strides[0], scale.itemsize, group
        values = (address_of(codes), codes.strides[0], address_of(scale), address_of(zero), *pitches)
        return cls(form, direct, values, (outputs, inputs))


class Products:
    """Products whose rows have bits that depend on nothing but the row and the matrix."""

    def __init__(self, functions: Functions, threads: Threads, paneled: bool | None = None) -> None:
        """`paneled`: see `make_product`; where registers are narrow, if not given. No result depends on it."""
        self._functions, self._threads = functions, threads
        self._paneled = not wide_registers() if paneled is None else paneled

    def linear(self, x: Numbers, w: Matrix, b: Numbers | None, out: Numbers, *, add: bool) -> Numbers:
        """See `Backend.linear`."""
        stored = Stored.of(w)
        (outputs, inputs), tokens = stored.shape, len(x)
        call = self._functions.shared(make_product, stored.form, stored.direct, self._paneled)
        beside = None if b is None else np.ascontiguousarray(b, np.float32)
        bias = 0 if beside is None else address_of(beside)
        target = address_of(out), out.strides[0], bias, int(add), block_outputs(inputs, self._paneled)
        operands = address_of(x), x.strides[0], tokens, *stored.values, inputs, *target
        threads = self._worth(outputs * inputs * max(1, tokens))
        self._threads.share(call, operands, outputs, threads, scratch_bytes(inputs, self._paneled), STEP_OUTPUTS)
        return out

    def expand(self, w: Matrix, out: Numbers) -> Numbers:
        """See `Backend.expand`."""
        stored = Stored.of(w)
        outputs, inputs = stored.shape
        call = self._functions.shared(make_expand, Form(stored.form.kind))
        operands = *stored.values, inputs, address_of(out), out.strides[0]
        self._threads.share(call, operands, outputs, self._worth(outputs * inputs))
        return out

    def _worth(self, multiplications: int) -> int:
        return worth(multiplications, self._threads.count)
