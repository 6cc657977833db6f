"""Products for few tokens, with weights as they are stored: launches of linear_few.cu; it knows no cuBLAS.

A block of the kernel takes some outputs and some tokens. Which one is the fastest depends on the form of the weights,
on the tokens, and on how many outputs keep the device busy. No bit of a product that is summed whole depends on it.
"""

from dataclasses import dataclass
from typing import cast

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref_cupy.device import COUNTERS_BYTES, PARTIALS_BYTES, Device
from flexref_cupy.expanding import FUSED_GROUPS, is_aligned, parts_of
from flexref_cupy.launching import Kernel
from flexref_cupy.memory import Tensor
from flexref_cupy.variants import FEW_BLOCKS, FEW_BLOCKS_SMALL, FewBlock

IN_ORDER_CAPABILITY = (9, 0)
"""Devices on which linear_few.cu has the bits of cublasLt. Older ones add up 8 inputs at a time, not 16."""

LARGE_SHARED = ((8, 0), (9, 0), (10, 0))
"""Devices whose blocks may have 163 KiB of shared memory; the others have 64 or 99."""

FEW_OUTPUTS = 64
"""Up to so many outputs for every multiprocessor are few."""

HALVES = 16
"""Bits of a weight that is stored as a half, in no group."""

CHUNK_INPUTS = {4: 256, 8: 256, HALVES: 128}
"""Inputs at a time, by bits of a weight: those of a matrix are a multiple of it."""

TOKEN_PADDING_BYTES = {4: 32, 8: 32, HALVES: 16}
"""Between two tokens of a chunk in shared memory."""

RUN_BYTES = 16
"""Rows of inputs and of weights are aligned to it."""

TILE_OUTPUTS, TILE_TOKENS = 16, 8
"""Outputs and tokens of a tile of the tensor cores."""

MOST_PARTS = 32
"""Bounds the parts of a product's inputs, whose sums one block adds up."""


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: Kernel
    outputs: int
    """Blocks of outputs."""
    parts: int
    block: FewBlock
    shared_bytes: int


class FewTokens:
    """Products of one device for few tokens, with the launches that their shapes led to."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._launches: dict[tuple[int, int, int, int, int, bool], _Launch] = {}

    def multiply(self, x: Tensor, w: Matrix, b: Tensor | None, out: Tensor, add: bool, whole: bool) -> None:
        """See `Products.linear`, for operands that `are_taken`.

        whole: every sum is taken from the first input to the last, not in parts.
        """
        (tokens, inputs), outputs, scratch = x.shape, w.shape[0], self._device.scratch
        if isinstance(w, QuantizedMatrix):
            bits, group_size = w.bits, w.group_size
            codes, scale, zero = parts_of(w)
            stored = codes.address, codes.pitch, scale.address, scale.pitch, zero.address, zero.pitch
        else:
            bits, group_size, dense = HALVES, 0, cast(Tensor, w)
            stored = dense.address, dense.pitch, 0, 0, 0, 0
        tiles = -(-tokens // TILE_TOKENS)
        key = outputs, inputs, bits, group_size, tiles, whole
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches[key] = self._launch(*key)
        block = launch.block
        launch.kernel(
            (-(-tiles // block.token_tiles), launch.outputs, launch.parts),
            block.threads,
            *(x.address, x.pitch, *stored),
            *(0, 0) if b is None else (b.address, b.dtype == "float32"),
            *(out.address, out.pitch, out.dtype == "float32", add, tokens, outputs, inputs),
            *(scratch.partials, scratch.counters),
            shared_bytes=launch.shared_bytes,
        )

    def _launch(self, outputs: int, inputs: int, bits: int, group_size: int, tiles: int, whole: bool) -> _Launch:
        cuda = self._device.cuda
        block = block_for(bits, tiles, outputs, cuda.multiprocessors, cuda.capability)
        shared_bytes = block.stages * stage_bytes(block, bits, group_size)
        macros = {**block.macros, "BITS": bits, "GROUP": group_size}
        kernel = self._device.kernels.get("linear_few", "linear_few", shared_bytes, **macros)
        blocks = -(-outputs // (TILE_OUTPUTS * block.row_tiles))
        parts, places = 1, blocks * -(-tiles // block.token_tiles)
        if not whole and places <= COUNTERS_BYTES // 4:
            sums_bytes = 4 * places * block.row_tiles * TILE_OUTPUTS * block.token_tiles * TILE_TOKENS
            parts = parts_for(places, inputs // CHUNK_INPUTS[bits], cuda.multiprocessors, PARTIALS_BYTES // sums_bytes)
        return _Launch(kernel, blocks, parts, block, shared_bytes)


def are_taken(x: Tensor, w: Matrix) -> bool:
    """Whether linear_few.cu takes such operands: a matter of their layout, never of where they lie by chance."""
    if not is_aligned(x, RUN_BYTES):
        return False
    if isinstance(w, QuantizedMatrix):
        codes, scale, zero = parts_of(w)
        return (
            w.group_size in FUSED_GROUPS
            and w.width % CHUNK_INPUTS[w.bits] == 0
            and scale.dtype == zero.dtype == "float16"
            and is_aligned(codes, RUN_BYTES)
            and all(is_aligned(each, 2 * CHUNK_INPUTS[w.bits] // w.group_size) for each in (scale, zero))
        )
    dense = cast(Tensor, w)
    return dense.dtype == "float16" and dense.shape[1] % CHUNK_INPUTS[HALVES] == 0 and is_aligned(dense, RUN_BYTES)


def block_for(bits: int, tiles: int, outputs: int, multiprocessors: int, capability: tuple[int, int]) -> FewBlock:
    """The block for so many tiles of tokens and so many outputs."""
    table = (FEW_BLOCKS if capability in LARGE_SHARED else FEW_BLOCKS_SMALL)[bits]
    few, many = next((blocks for most, blocks in table.items() if tiles <= most), list(table.values())[-1])
    return few if outputs <= FEW_OUTPUTS * multiprocessors else many


def stage_bytes(block: FewBlock, bits: int, group_size: int) -> int:
    """Shared memory of a stage: a chunk of the inputs of a block's tokens, and of its outputs' weights."""
    chunk = CHUNK_INPUTS[bits]
    scales_bytes = 0 if bits == HALVES else 2 * 2 * chunk // group_size
    tokens_bytes = TILE_TOKENS * block.token_tiles * (2 * chunk + TOKEN_PADDING_BYTES[bits])
    return tokens_bytes + TILE_OUTPUTS * block.row_tiles * (chunk * bits // 8 + scales_bytes)


def parts_for(blocks: int, chunks: int, multiprocessors: int, most: int) -> int:
    """Parts of the inputs, at most `most`, so that blocks of outputs in parts keep the device busy for the least time.

    A multiprocessor's time is that of the chunks of all its blocks, with one more for the start and the end of each;
    a block alone on it does not use it fully; and every part is one more to add up.
    """

    def chunks_passed(parts: int) -> int:
        blocks_each = -(-blocks * parts // multiprocessors)
        return max(2 * blocks_each, 3) * (-(-chunks // parts) + 1) + parts

    return min(range(1, max(1, min(chunks, most, MOST_PARTS)) + 1), key=chunks_passed)
