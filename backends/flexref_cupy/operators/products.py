"""Matrix products of the port: by cuBLAS, or for few tokens with the weights as they are stored; it knows no layer.

The bits of a product follow from its shapes and values alone. Kernels of the port see to that themselves; cuBLAS does
not, since it chooses an algorithm by pitches and alignments too. So it is shown one layout only (see `is_shown`): what
lies otherwise goes through scratch memory. And a matrix is always cut into the same tiles, stored or expanded. Where
rows are to have bits of their own, the number of tokens has no part in them either (linear_few.cu, cublas_lt.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.units import DTYPE_BYTES, aligned
from flexref_cupy.device import PARTIALS_BYTES, WEIGHTS_BYTES, Device, pieces
from flexref_cupy.driver.launching import Kernel
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.expanding import C_TYPES, expand, is_aligned
from flexref_cupy.operators.few_tokens import IN_ORDER_CAPABILITY, FewTokens, are_taken

FUSED_ROWS = 128
"""Up to so many tokens codes are multiplied faster than expanded ones by cuBLAS: see README.md for the measurement."""

DENSE_ROWS = 16
"""Up to so many tokens halves are multiplied faster than by cuBLAS."""

SHOWN_BYTES = 256
"""cuBLAS sees addresses that are multiples of it: no load or store is wider."""

SHOWN_ELEMENTS = 8
"""cuBLAS sees pitches that are multiples of it: 16 bytes of halves, as its fastest kernels need."""

TILE_ROWS = 256
"""Tiles of a matrix are multiples of it, where there are several: no block of a product is cut."""

BIAS_THREADS, BIAS_RUN, BIAS_BLOCKS = 256, 8, 8
"""Threads of a block of add_bias.cu, the columns of one in the aligned case, and blocks per multiprocessor."""


@dataclass(frozen=True, slots=True)
class _Bias:
    kernel: Kernel
    blocks: int
    most_tokens: int


class Products:
    """`expand` and `linear` of one device, with the launches that their shapes led to."""

    def __init__(self, device: Device, fused_rows: int = FUSED_ROWS) -> None:
        """Products of up to `fused_rows` tokens read codes directly, where these are laid out for it."""
        self.rows_apart = False
        """Whether a row's bits are its own, for any number of tokens."""
        self._device, self._fused_rows = device, fused_rows
        self._few = FewTokens(device)
        self._biases: dict[tuple[object, ...], _Bias] = {}
        self._tiles_found: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}

    def expand(self, w: Matrix, out: Tensor, first: int = 0, last: int | None = None) -> None:
        """Rows `first` to `last` of w (O, I) -> out (last - first, I): in float16, or dense ones in their own type.

        Values in groups are the halves that products for few tokens multiply.
        """
        expand(self._device, w, out, first, w.shape[0] if last is None else last)

    def linear(self, x: Tensor, w: Matrix, b: Tensor | None, out: Tensor, add: bool) -> None:
        """x (T, I) float16, w (O, I), b (O,) -> out (T, O) = x w^T + b, or that added to `out`."""
        tokens = x.shape[0]
        if not tokens:
            return
        if self._is_few(tokens, w) and are_taken(x, w):
            self._few.multiply(x, w, b, out, add, whole=self.rows_apart)
            return
        copied = copied_bytes(x), copied_bytes(out)
        if any(copied):
            self._multiply_copies(x, w, out, add, copied)
        else:
            self._multiply(x, w, out, add)
        if b is not None:
            self._add_bias(out, b)

    def _is_few(self, tokens: int, w: Matrix) -> bool:
        if self.rows_apart and self._device.cuda.capability < IN_ORDER_CAPABILITY:
            return False
        most = self._fused_rows if isinstance(w, QuantizedMatrix) else min(self._fused_rows, DENSE_ROWS)
        return tokens <= most

    # By cuBLAS

    def _multiply_copies(self, x: Tensor, w: Matrix, out: Tensor, add: bool, copied: tuple[int, int]) -> None:
        """See `_multiply`; but x, `out` or both are copied, `copied` bytes per token.

        As many tokens at a time as fit the scratch: all of them, unless very many are laid out badly.
        """
        (x_bytes, out_bytes), scratch = copied, self._device.scratch.partials
        most = (PARTIALS_BYTES - SHOWN_BYTES) // sum(copied)
        if not most:
            raise ValueError(f"a token of {x.shape[1]} and {out.shape[1]} numbers exceeds {PARTIALS_BYTES} bytes")
        for first, last in pieces(x.shape[0], most):
            source, target = x[first:last], out[first:last]
            placed, result = source, target
            if x_bytes:
                placed = Tensor(scratch, source.shape, x.dtype, shown(x.shape[1]))
                self._device.assign(placed, source)
            if out_bytes:
                address = scratch + aligned((last - first) * x_bytes, SHOWN_BYTES)
                result = Tensor(address, target.shape, out.dtype, shown(out.shape[1]))
                if add:
                    self._device.assign(result, target)
            self._multiply(placed, w, result, add)
            if out_bytes:
                self._device.assign(target, result)

    def _multiply(self, x: Tensor, w: Matrix, out: Tensor, add: bool) -> None:
        """out (T, O) = or += x (T, I) w (O, I)^T, tile by tile of w; x and out as cuBLAS is shown them."""
        outputs, inputs = w.shape
        pitch, item = shown(inputs), DTYPE_BYTES[out.dtype]
        dense = None if isinstance(w, QuantizedMatrix) else cast(Tensor, w)
        if dense is not None and not (dense.dtype == "float16" and is_shown(dense)):
            dense = None
        cuda = self._device.cuda
        multiply = cuda.multiply_apart if self.rows_apart else cuda.multiply
        for first, last in self._tiles(outputs, inputs):
            if dense is not None:
                address = dense.address + first * pitch * DTYPE_BYTES["float16"]
            else:
                address = self._device.scratch.weights
                self.expand(w, Tensor(address, (last - first, inputs), "float16", pitch), first, last)
            target = (out.address + first * item, shown(outputs), out.dtype)
            shape = (x.shape[0], last - first, inputs)
            multiply(shape, (x.address, pitch), (address, pitch), target, add)

    def _tiles(self, outputs: int, inputs: int) -> tuple[tuple[int, int], ...]:
        found = self._tiles_found.get((outputs, inputs))
        if found is None:
            found = self._tiles_found[outputs, inputs] = tuple(tiles(outputs, inputs))
        return found

    def _add_bias(self, out: Tensor, b: Tensor) -> None:
        tokens, outputs = out.shape
        run = BIAS_RUN if outputs % BIAS_RUN == 0 and is_aligned(out, 16) and b.address % 16 == 0 else 1
        key = run, out.dtype, b.dtype, outputs
        if key not in self._biases:
            types = {"OUT": C_TYPES[out.dtype], "BIAS": C_TYPES[b.dtype]}
            kernel = self._device.kernels.get("add_bias", "add_bias", 0, **types, RUN=run)
            blocks = -(-outputs // (BIAS_THREADS * run))
            self._biases[key] = _Bias(kernel, blocks, -(-BIAS_BLOCKS * self._device.cuda.multiprocessors // blocks))
        bias = self._biases[key]
        grid = (bias.blocks, min(tokens, bias.most_tokens), 1)
        bias.kernel(grid, BIAS_THREADS, out.address, out.pitch, b.address, tokens, outputs)


def shown(width: int) -> int:
    """The pitch in elements at which cuBLAS sees rows of `width`."""
    return aligned(width, SHOWN_ELEMENTS)


def is_shown(x: Tensor) -> bool:
    """Whether x (T, W) lies as cuBLAS is shown it."""
    return x.address % SHOWN_BYTES == 0 and (x.pitch == shown(x.shape[1]) or x.shape[0] == 1)


def copied_bytes(x: Tensor) -> int:
    """Bytes of a row of its copy, if x (T, W) must be copied for cuBLAS; else 0."""
    return 0 if is_shown(x) else shown(x.shape[1]) * DTYPE_BYTES[x.dtype]


def tiles(outputs: int, inputs: int) -> Iterator[tuple[int, int]]:
    """Cut w (O, I) into (first, last) rows that fit the scratch as halves: one tile, or even multiples of TILE_ROWS."""
    most = WEIGHTS_BYTES // (shown(inputs) * DTYPE_BYTES["float16"])
    if outputs > most:
        whole = most // TILE_ROWS * TILE_ROWS
        if not whole:
            raise ValueError(f"{TILE_ROWS} rows of {inputs} weights exceed scratch of {WEIGHTS_BYTES} bytes")
        most = aligned(-(-outputs // -(-outputs // whole)), TILE_ROWS)
    for first in range(0, outputs, most):
        yield first, min(outputs, first + most)
