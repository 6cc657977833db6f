"""Products for few tokens, with weights as they are stored: launches of linear_few.cu; it knows no cuBLAS.

A block of the kernel takes some outputs and some tokens. Which one is the fastest depends on the form of the weights,
on the tokens, and on how many outputs keep the device busy. No bit of a product that is summed whole depends on it.
"""

from dataclasses import dataclass
from typing import cast

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref_cupy.device import COUNTERS_BYTES, PARTIALS_BYTES, Device
from flexref_cupy.driver.early_launch import EARLY_CAPABILITY
from flexref_cupy.driver.launching import Kernel
from flexref_cupy.driver.variants import FEW_BLOCKS, FEW_BLOCKS_MIDDLE, FEW_BLOCKS_SMALL, FEW_GROUPS, FewBlock
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.expanding import is_aligned, parts_of

IN_ORDER_CAPABILITY = (9, 0)
"""Devices on which linear_few.cu has the bits of cublasLt. Older ones add up 8 inputs at a time, not 16."""

LARGE_BYTES, MIDDLE_BYTES, SMALL_BYTES = 227 << 10, 163 << 10, 64 << 10

SHARED_BYTES = {(8, 0): MIDDLE_BYTES, (9, 0): LARGE_BYTES, (10, 0): LARGE_BYTES}
"""Shared memory that a multiprocessor of a device has for blocks; every other device has SMALL_BYTES."""

SPREAD_BLOCKS = 2
"""Blocks of a multiprocessor up to which they are spread evenly: more of them even out by themselves."""

BLOCK_OWN_BYTES = 1 << 10
"""Shared memory that CUDA itself takes for a block."""

TABLES = {LARGE_BYTES: FEW_BLOCKS, MIDDLE_BYTES: FEW_BLOCKS_MIDDLE, SMALL_BYTES: FEW_BLOCKS_SMALL}

FEW_OUTPUTS, MORE_OUTPUTS = 32, 64
"""Up to so many outputs for every multiprocessor are few, and more of them not yet many."""

HALVES = 16
"""Bits of a weight that is stored as a half, in no group."""

CHUNK_INPUTS = {4: 256, 8: 256, HALVES: 128}
"""Inputs at a time, by bits of a weight: those of a matrix are a multiple of it."""

TOKEN_PADDING_BYTES = {4: 32, 8: 32, HALVES: 16}
"""Between two tokens of a chunk in shared memory."""

SECTOR_BYTES = 32
"""Of the memory: so much of a row's scales comes at once, for some chunks."""

RUN_BYTES = 16
"""Rows of inputs and of weights are aligned to it."""

TILE_TOKENS = 8
"""Tokens of a tile of the tensor cores: launches differ by their number."""

TURNED_TOKENS = 16
"""Tokens of a tile where a warp takes 8 outputs: its sums are kept for so many, if there are fewer."""

BLOCKS_AT_ONCE = 2
"""Blocks that a multiprocessor is given by cutting inputs, if they fit: one alone waits for memory."""

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
            (-(-tokens // block.tokens), launch.outputs, launch.parts),
            block.threads,
            *(x.address, x.pitch, *stored),
            *(0, 0) if b is None else (b.address, b.dtype == "float32"),
            *(out.address, out.pitch, out.dtype == "float32", add, tokens, outputs, inputs),
            *(scratch.partials, scratch.counters),
            shared_bytes=launch.shared_bytes,
        )

    def _launch(self, outputs: int, inputs: int, bits: int, group_size: int, tiles: int, whole: bool) -> _Launch:
        cuda = self._device.cuda
        each = -(-outputs // cuda.multiprocessors) if whole else MORE_OUTPUTS + 1
        block = block_for(bits, tiles * TILE_TOKENS, each, cuda.capability)
        needed_bytes = shared_bytes(block, bits, group_size)
        room = SHARED_BYTES.get(cuda.capability, SMALL_BYTES)
        blocks = -(-outputs // block.outputs)
        parts, places = 1, blocks * -(-tiles * TILE_TOKENS // block.tokens)
        if not whole and places <= COUNTERS_BYTES // 4:
            sums_bytes = 4 * places * block.outputs * max(block.tokens, TURNED_TOKENS)
            at_once = cuda.multiprocessors * min(BLOCKS_AT_ONCE, room // needed_bytes)
            parts = parts_for(places, inputs // CHUNK_INPUTS[bits], at_once, PARTIALS_BYTES // sums_bytes)
        if cuda.capability >= EARLY_CAPABILITY:
            needed_bytes = max(needed_bytes, spread_bytes(-(-places * parts // cuda.multiprocessors), room))
        macros = {**block.macros, "BITS": bits, "GROUP": group_size}
        kernel = self._device.kernels.get("linear_few", "linear_few", needed_bytes, **macros)
        return _Launch(kernel, blocks, parts, block, needed_bytes)


def are_taken(x: Tensor, w: Matrix) -> bool:
    """Whether linear_few.cu takes such operands: a matter of their layout, never of where they lie by chance."""
    if not is_aligned(x, RUN_BYTES):
        return False
    if isinstance(w, QuantizedMatrix):
        codes, scale, zero = parts_of(w)
        return (
            w.group_size in FEW_GROUPS[w.bits]
            and w.width % CHUNK_INPUTS[w.bits] == 0
            and scale.dtype == zero.dtype == "float16"
            and is_aligned(codes, RUN_BYTES)
            and all(is_aligned(each, 2 * CHUNK_INPUTS[w.bits] // w.group_size) for each in (scale, zero))
        )
    dense = cast(Tensor, w)
    return dense.dtype == "float16" and dense.shape[1] % CHUNK_INPUTS[HALVES] == 0 and is_aligned(dense, RUN_BYTES)


def block_for(bits: int, tokens: int, outputs: int, capability: tuple[int, int]) -> FewBlock:
    """The block for so many tokens, and so many outputs for every multiprocessor."""
    table = TABLES[SHARED_BYTES.get(capability, SMALL_BYTES)][bits]
    few, more, many = next((blocks for most, blocks in table.items() if tokens <= most), list(table.values())[-1])
    return few if outputs <= FEW_OUTPUTS else more if outputs <= MORE_OUTPUTS else many


def shared_bytes(block: FewBlock, bits: int, group_size: int) -> int:
    """Shared memory of a block: in every stage a chunk of the inputs of its tokens and outputs; batches of scales."""
    chunk = CHUNK_INPUTS[bits]
    tokens_bytes = block.tokens * (2 * chunk + TOKEN_PADDING_BYTES[bits])
    stage_bytes = tokens_bytes + block.outputs * chunk * bits // 8
    if bits == HALVES:
        return block.stages * stage_bytes
    batches = 1 + -(-block.stages // (SECTOR_BYTES * group_size // (2 * chunk)))
    return block.stages * stage_bytes + batches * block.outputs * 2 * SECTOR_BYTES


def spread_bytes(each: int, room: int) -> int:
    """Shared memory with which no multiprocessor, of `room`, takes more than `each` blocks; 0: they need no spreading.

    Blocks that start while the kernel before them ends would crowd where it ended first, and leave the rest idle.
    """
    if each > SPREAD_BLOCKS:
        return 0
    return (room + BLOCK_OWN_BYTES) // (each + 1) // BLOCK_OWN_BYTES * BLOCK_OWN_BYTES


def parts_for(places: int, chunks: int, at_once: int, most: int) -> int:
    """Parts of the inputs, at most `most`: as many as let the device have up to `at_once` blocks.

    places: blocks of a product whose inputs are not cut. A part has two chunks at least, or there is one part.
    """
    return max(1, min(most, MOST_PARTS, chunks // 2, at_once // places))
