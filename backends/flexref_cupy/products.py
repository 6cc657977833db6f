"""Matrix products of the port: by cuBLAS, or for few tokens directly from 4-bit groups; it knows no layer.

Weights in groups of 8 bits are always expanded and multiplied by cuBLAS: no kernel reads their codes for few tokens.

The bits of a product follow from its shapes and values alone. Kernels of the port see to that themselves; cuBLAS does
not, since it chooses an algorithm by pitches and alignments too. So it is shown one layout only (see `is_shown`): what
lies otherwise goes through scratch memory. And a matrix is always cut into the same tiles, stored or expanded. Where
rows are to have bits of their own, the number of tokens has no part in them either (linear_in_order.cu, cublas_lt.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.units import DTYPE_BYTES, aligned
from flexref_cupy.device import COUNTERS_BYTES, PARTIALS_BYTES, WEIGHTS_BYTES, Device, pieces
from flexref_cupy.expanding import C_TYPES, FUSED_GROUPS, expand, is_aligned, parts_of
from flexref_cupy.launching import Kernel
from flexref_cupy.memory import Tensor
from flexref_cupy.variants import IN_ORDER_BLOCKS

FUSED_ROWS = 128
"""Up to so many tokens the fused product is faster than expanding and cuBLAS: see README.md for the measurement."""

FUSED_TOKENS = 64
"""Tokens of one launch of the fused product: their sums fill the registers."""

FUSED_INPUTS, FUSED_OUTPUTS, FUSED_THREADS = 128, 128, 128
"""The fused product's chunk of inputs, a block's outputs, and its threads (linear_int4.cu)."""

FUSED_STAGES, FUSED_STAGES_PLAIN, COPIES_BESIDE = 4, 2, (8, 0)
"""Chunks of inputs in shared memory: one in use, the others on their way, where the device copies beside computing."""

FUSED_TILE_BYTES = 8 * FUSED_INPUTS * 2
"""Shared memory that a chunk of the inputs of eight tokens takes."""

IN_ORDER_CAPABILITY = (9, 0)
"""Devices on which linear_in_order.cu has the bits of cublasLt. Older ones add up 8 inputs at a time, not 16."""

IN_ORDER_ROWS, IN_ORDER_CODES_BYTES, IN_ORDER_TOKEN_BYTES = 16, 16 * 80, 288
"""Outputs of a tile of it, and the shared memory of a chunk of their codes and of a token's inputs."""

MOST_PARTS = 32
"""Bounds the parts of a fused product's inputs, whose sums one block adds up."""

SHOWN_BYTES = 256
"""cuBLAS sees addresses that are multiples of it: no load or store is wider."""

SHOWN_ELEMENTS = 8
"""cuBLAS sees pitches that are multiples of it: 16 bytes of halves, as its fastest kernels need."""

TILE_ROWS = 256
"""Tiles of a matrix are multiples of it, where there are several: no block of a product is cut."""

BIAS_THREADS, BIAS_RUN, BIAS_BLOCKS = 256, 8, 8
"""Threads of a block of add_bias.cu, the columns of one in the aligned case, and blocks per multiprocessor."""


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: Kernel
    grid: tuple[int, int, int]
    shared_bytes: int = 0
    threads: int = FUSED_THREADS


class Products:
    """`expand` and `linear` of one device, with the launches that their shapes led to."""

    def __init__(self, device: Device, fused_rows: int = FUSED_ROWS) -> None:
        """Products of up to `fused_rows` tokens read 4-bit codes directly, where these are laid out for it."""
        self.rows_apart = False
        """Whether a row's bits are its own, for any number of tokens."""
        self._device, self._fused_rows = device, fused_rows
        self._launches: dict[tuple[object, ...], _Launch] = {}
        self._tiles_found: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}

    def expand(self, w: Matrix, out: Tensor, first: int = 0, last: int | None = None) -> None:
        """Rows `first` to `last` of w (O, I) -> out (last - first, I): in float16, or dense ones in their own type.

        Values in groups of 4 bits are the halves that the fused product multiplies.
        """
        expand(self._device, w, out, first, w.shape[0] if last is None else last)

    def linear(self, x: Tensor, w: Matrix, b: Tensor | None, out: Tensor, add: bool) -> None:
        """x (T, I) float16, w (O, I), b (O,) -> out (T, O) = x w^T + b, or that added to `out`."""
        tokens = x.shape[0]
        if not tokens:
            return
        few = tokens <= self._fused_rows
        if self.rows_apart:
            # With more tokens than one launch takes expanding is as fast, and has the same bits.
            few = tokens <= min(self._fused_rows, FUSED_TOKENS) and self._device.cuda.capability >= IN_ORDER_CAPABILITY
        if few and isinstance(w, QuantizedMatrix) and can_be_fused(x, w):
            if tokens <= FUSED_TOKENS:
                self._fused(x, w, b, out, add)
            else:
                for first, last in pieces(tokens, FUSED_TOKENS):
                    self._fused(x[first:last], w, b, out[first:last], add)
            return
        copied = copied_bytes(x), copied_bytes(out)
        if any(copied):
            self._multiply_copies(x, w, out, add, copied)
        else:
            self._multiply(x, w, out, add)
        if b is not None:
            self._add_bias(out, b)

    # From 4-bit groups

    def _fused(self, x: Tensor, w: QuantizedMatrix, b: Tensor | None, out: Tensor, add: bool) -> None:
        (tokens, inputs), outputs, scratch = x.shape, w.shape[0], self._device.scratch
        launch_of = self._in_order_launch if self.rows_apart else self._fused_launch
        launch = launch_of(outputs, inputs, tokens, (out.dtype, "float16" if b is None else b.dtype))
        codes, scale, zero = parts_of(w)
        launch.kernel(
            launch.grid,
            launch.threads,
            *(x.address, x.pitch, codes.address, codes.pitch, scale.address, scale.pitch, zero.address, zero.pitch),
            *(0 if b is None else b.address, out.address, out.pitch, add, tokens, outputs, inputs),
            *((w.group_size // 2).bit_length() - 1, scratch.partials, scratch.counters)[: 1 if self.rows_apart else 3],
            shared_bytes=launch.shared_bytes,
        )

    def _fused_launch(self, outputs: int, inputs: int, tokens: int, dtypes: tuple[str, str]) -> _Launch:
        tiles = 1 << (-(-tokens // 8) - 1).bit_length()
        key = ("fused", outputs, inputs, tiles, dtypes)
        if key not in self._launches:
            out, bias = (C_TYPES[dtype] for dtype in dtypes)
            stages = FUSED_STAGES if self._device.cuda.capability >= COPIES_BESIDE else FUSED_STAGES_PLAIN
            shared_bytes = stages * tiles * FUSED_TILE_BYTES
            macros = {"TOKEN_TILES": tiles, "STAGES": stages, "OUT": out, "BIAS": bias}
            kernel = self._device.kernels.get("linear_int4", "linear_int4", shared_bytes, **macros)
            blocks = -(-outputs // FUSED_OUTPUTS)
            room = PARTIALS_BYTES // (blocks * FUSED_OUTPUTS * tiles * 8 * 4) if blocks <= COUNTERS_BYTES // 4 else 1
            parts = parts_for(blocks, inputs // FUSED_INPUTS, self._device.cuda.multiprocessors, room)
            self._launches[key] = _Launch(kernel, (blocks, parts, 1), shared_bytes)
        return self._launches[key]

    def _in_order_launch(self, outputs: int, inputs: int, tokens: int, dtypes: tuple[str, str]) -> _Launch:
        tiles = 1 << (-(-tokens // 8) - 1).bit_length()
        key = ("in order", outputs, tiles, dtypes)
        if key not in self._launches:
            out, bias = (C_TYPES[dtype] for dtype in dtypes)
            few = outputs <= 2 * IN_ORDER_ROWS * self._device.cuda.multiprocessors
            rows, warps, stages = IN_ORDER_BLOCKS[tiles][0 if few else 1]
            shared_bytes = stages * (8 * tiles * IN_ORDER_TOKEN_BYTES + rows * IN_ORDER_CODES_BYTES)
            macros = {"TOKEN_TILES": tiles, "ROW_TILES": rows, "TOKEN_WARPS": warps, "STAGES": stages}
            name = "linear_in_order"
            kernel = self._device.kernels.get(name, name, shared_bytes, **macros, OUT=out, BIAS=bias)
            grid = (-(-outputs // (rows * IN_ORDER_ROWS)), 1, 1)
            self._launches[key] = _Launch(kernel, grid, shared_bytes, 32 * rows * warps)
        return self._launches[key]

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
        key = ("bias", run, out.dtype, b.dtype, outputs)
        if key not in self._launches:
            types = {"OUT": C_TYPES[out.dtype], "BIAS": C_TYPES[b.dtype]}
            kernel = self._device.kernels.get("add_bias", "add_bias", 0, **types, RUN=run)
            blocks = -(-outputs // (BIAS_THREADS * run))
            most = -(-BIAS_BLOCKS * self._device.cuda.multiprocessors // blocks)
            self._launches[key] = _Launch(kernel, (blocks, most, 1))
        launch = self._launches[key]
        blocks, most, _ = launch.grid
        grid = (blocks, min(tokens, most), 1)
        launch.kernel(grid, BIAS_THREADS, out.address, out.pitch, b.address, tokens, outputs)


def can_be_fused(x: Tensor, w: QuantizedMatrix) -> bool:
    """Whether linear_int4.cu takes such operands: a matter of their layout, never of where they lie by chance."""
    codes, scale, zero = parts_of(w)
    return (
        w.bits == 4
        and w.group_size in FUSED_GROUPS
        and w.width % FUSED_INPUTS == 0
        and scale.dtype == zero.dtype == "float16"
        and is_aligned(codes, 16)
        and is_aligned(x, 16)
    )


def parts_for(blocks: int, chunks: int, multiprocessors: int, most: int) -> int:
    """Parts of the inputs, at most `most`, so that blocks of outputs in parts keep the device busy for the least time.

    A multiprocessor's time is that of the chunks of all its blocks, with one more for the start and the end of each;
    a block alone on it does not use it fully; and every part is one more to add up.
    """

    def chunks_passed(parts: int) -> int:
        blocks_each = -(-blocks * parts // multiprocessors)
        return max(2 * blocks_each, 3) * (-(-chunks // parts) + 1) + parts

    return min(range(1, max(1, min(chunks, most, MOST_PARTS)) + 1), key=chunks_passed)


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
