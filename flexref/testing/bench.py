"""Puts values onto any port in the layouts in which an engine hands them over, and takes them off; it knows no law."""

from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Array, Backend, Buffer, Matrix, Move, QuantizedMatrix, Span
from flexref.backend.workspace import RESULT_ALIGNMENT_BYTES
from flexref.check.laws import coded
from flexref.check.tolerances import Arithmetic, Operand, Values, arithmetic, converted, expanded
from flexref.storage.quant import quantize
from flexref.units import DTYPE_BYTES, aligned

EDGE_BYTES = RESULT_ALIGNMENT_BYTES
"""Guard bytes before and after an array; the array is aligned like any result."""

GUARD = 66
"""Every byte around an array of a test, and of a result before it is written: as a float 48.6 (3.13 as float16), which
no operator leaves unseen if it reads, adds to or fails to write it."""

WORKSPACE_BYTES = 1 << 20
"""Holds the results of any one clause: its arrays are a few hundred numbers wide."""


class Bench:
    """Memory on one port for the length of a clause: `with Bench(backend) as bench`; all of it is given back."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._buffers: list[Buffer] = []
        self._rows_apart = True

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.backend.workspace(None)
        if not self._rows_apart:
            self.backend.keep_rows_apart(True)
        for buffer in self._buffers:
            self.backend.release(buffer)

    @property
    def dtype(self) -> str:
        """The type of activations."""
        return self.backend.caps.compute_dtype

    @property
    def arithmetic(self) -> Arithmetic:
        """What the contract asks of the port's arithmetic."""
        return arithmetic(self.dtype)

    def buffer(self, tier: str, nbytes: int) -> Buffer:
        """Memory of a tier, given back at the end."""
        buffer = self.backend.allocate(tier, nbytes)
        self._buffers.append(buffer)
        return buffer

    def keep_rows_apart(self, on: bool) -> None:
        """Ask for rows with bits of their own, or not, until the end; after it they are asked for."""
        self._rows_apart = on
        self.backend.keep_rows_apart(on)

    def workspace(self, nbytes: int = WORKSPACE_BYTES) -> Buffer:
        """Let the port's results come from counted memory; the buffer that they come from."""
        buffer = self.buffer("device", nbytes)
        self.backend.workspace(buffer)
        return buffer

    def array(self, values: Values) -> Array:
        """Values as a device array of their type, inside guard bytes."""
        return Guarded(self, values).array

    def guarded(self, values: Values, before: int = 0, after: int = 0) -> "Guarded":
        """Values as columns `before` to `-after` of a wider device array whose other columns hold guard bytes."""
        return Guarded(self, values, before, after)

    def results(self, shape: tuple[int, ...], before: int = 0, after: int = 0) -> "Guarded":
        """A place for results of the compute type: guard bytes, the place itself too."""
        return Guarded(self, guard_values(shape, self.dtype), before, after)

    def read(self, x: Array) -> Values:
        """The values of a device array."""
        return self.backend.download(x)

    def bytes_of(self, buffer: Buffer) -> npt.NDArray[np.uint8]:
        """A copy of the bytes of a device buffer."""
        return self.backend.download(self.backend.view(buffer, 0, (buffer.nbytes,), "uint8"))

    def matrix(self, values: Values, form: str, group_size: int) -> tuple[Matrix, Operand]:
        """Values (O, I) as weights, and what a port may make of them; `form` is a type, or a layout and its scales'."""
        if not form.startswith("int"):
            held = values.astype(form)
            return self.array(held), converted(held, self.arithmetic)
        layout, _, scales = form.partition(" ")
        bits = {"int4": 4, "int8": 8}[layout]
        packed = quantize(values, group_size, scales, "weights of a test", bits)
        parts = (self.array(packed.codes), self.array(packed.scale), self.array(packed.zero))
        matrix = QuantizedMatrix(*parts, width=packed.width, group_size=group_size, bits=bits)
        products, zeros = coded(packed.codes, packed.scale, packed.zero, packed.width, group_size, bits)
        return matrix, expanded(products, zeros, self.arithmetic)

    def host_bytes(self, buffer: Buffer) -> npt.NDArray[np.uint8]:
        """A host buffer as bytes."""
        return self.backend.host_memory(buffer)


class Guarded:
    """An array of one tier inside guard bytes: a column slice of a wider array, in a longer buffer.

    Arrays of host memory are for operators of ports that attend there; the host itself reads and writes their bytes.
    """

    def __init__(self, bench: Bench, values: Values, before: int = 0, after: int = 0, tier: str = "device") -> None:
        self._bench, self._tier, self._dtype = bench, tier, values.dtype
        self._wide_shape = (*values.shape[:-1], before + values.shape[-1] + after)
        self._columns = (..., slice(before, before + values.shape[-1]))
        self._size = int(np.prod(self._wide_shape)) * values.dtype.itemsize
        self._buffer = bench.buffer(tier, aligned(self._size, EDGE_BYTES) + 2 * EDGE_BYTES)
        wide = bench.backend.view(self._buffer, EDGE_BYTES, self._wide_shape, str(values.dtype))
        columns = (*[slice(None)] * (values.ndim - 1), self._columns[1])
        self.array: Array = wide[columns] if before or after else wide
        content = np.full(self._buffer.nbytes, GUARD, np.uint8)
        self._inside(content)[...] = values
        if tier == "host":
            if bench.backend.caps.computes:
                bench.host_bytes(self._buffer)[:] = content
        else:
            bench.backend.upload(content, out=bench.backend.view(self._buffer, 0, content.shape, "uint8"))

    def _inside(self, content: Values) -> Values:
        """The array itself among all bytes of the buffer."""
        inside: Values = content[EDGE_BYTES : EDGE_BYTES + self._size].view(self._dtype).reshape(self._wide_shape)
        return inside[self._columns]

    def _everything(self) -> Values:
        """A copy of all bytes of the buffer, when the operators so far are done."""
        if self._tier == "host":
            self._bench.backend.mark().wait()
            return self._bench.host_bytes(self._buffer).copy()
        return self._bench.bytes_of(self._buffer)

    def read(self) -> Values:
        """The values."""
        return self._inside(self._everything()).copy()

    def assert_untouched_around(self, what: str) -> None:
        """Raise `AssertionError` if a byte outside the array is no guard byte any more."""
        found = self._everything()
        inside = self._inside(found)
        inside[...] = guard_values(inside.shape, str(self._dtype))
        if not (found == GUARD).all():
            place = int(np.argmax(found != GUARD))
            raise AssertionError(
                f"{what}: wrote outside its result {inside.shape}: byte {place - EDGE_BYTES}, counted from the array's "
                f"first, is {found[place]}, needed {GUARD}, as it was before"
            )


def guard_values(shape: tuple[int, ...], dtype: str) -> Values:
    """An array of guard bytes."""
    count = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
    return np.full(count, GUARD, np.uint8).view(dtype).reshape(shape)


def whole(buffer: Buffer) -> Span:
    """All bytes of a buffer."""
    return Span(buffer, 0, buffer.nbytes)


def move(source: Span, target: Span) -> Move:
    """A move of a test."""
    return Move("a move of a test", source, target)


def assert_same_bits(actual: Values, expected: Values, what: str, note: str = "") -> None:
    """Raise `AssertionError` naming `what` unless both arrays hold the same numbers; 0 and -0 are the same.

    `note` ends the message: what else one must know of the call.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(f"{what}: {actual.dtype} {actual.shape}, needed {expected.dtype} {expected.shape}")
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    if not same.all():
        at = tuple(int(place) for place in np.unravel_index(int(np.argmin(same)), same.shape))
        raise AssertionError(
            f"{what}: element {at} of {actual.shape} is {actual[at]!s}, needed {expected[at]!s} exactly; "
            f"{int((~same).sum())} of {same.size} elements differ{note}"
        )


def assert_shape(x: Array, shape: tuple[int, ...], what: str) -> None:
    """Raise `AssertionError` naming `what` unless the array has this shape."""
    if tuple(x.shape) != shape:
        raise AssertionError(f"{what}: shape {tuple(x.shape)}, needed {shape}")


def assert_raises(kind: type[BaseException], call: Callable[[], object], what: str) -> BaseException:
    """The error of type `kind` that `call` raises; `AssertionError` naming `what` if it raises none."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what}: raised nothing, needed {kind.__name__}")
