"""Every variant of every kernel: what the port may ask for is what continuous integration has compiled."""

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

Macros = Mapping[str, object]


def _all(**choices: tuple[object, ...]) -> tuple[Macros, ...]:
    """Every combination of the macros' values."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


HALF_OR_FLOAT = ("half", "float")

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
"""All that a model may name; the contract asks for each."""

_RECORDS = (
    *_all(FORM=("VALUES",), WIDTH=(16, 64, 80, 128), GROUP=(0,)),
    *_all(FORM=("CODES",), WIDTH=(16,), GROUP=(16,)),
    *_all(FORM=("CODES",), WIDTH=(64,), GROUP=(32, 64)),
    *_all(FORM=("CODES",), WIDTH=(80,), GROUP=(64,)),
    *_all(FORM=("CODES",), WIDTH=(128,), GROUP=(32, 64, 128)),
)
"""Cache records whose layout kernels know as a constant: the head widths of the published models, and a small one."""


class DecodeBlock(NamedTuple):
    """A block of attend_decode.cu: `heads` of an item, `team` warps each.

    chunk_steps: steps of 16 keys whose codes come at once; stages: such chunks in shared memory (halves do not come
    there); min_blocks: so many blocks the registers of a multiprocessor are made to hold.
    """

    heads: int
    team: int
    chunk_steps: int
    stages: int
    min_blocks: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.heads * self.team

    @property
    def macros(self) -> Macros:
        """What the kernel calls these."""
        return {name.upper(): value for name, value in self._asdict().items()}


class DecodeBlocks(NamedTuple):
    """Those of one form: for many items, or rows as items; for a row as an item where rows are few; for few items."""

    many: DecodeBlock
    rows: DecodeBlock
    some: DecodeBlock
    few: DecodeBlock


DECODE_CODES = DecodeBlocks(
    DecodeBlock(4, 1, 4, 2, 4), DecodeBlock(4, 2, 8, 2, 1), DecodeBlock(2, 2, 8, 3, 3), DecodeBlock(1, 4, 8, 4, 4)
)
"""The fastest of those that were measured on an H200."""

DECODE_CODES_SMALL = DecodeBlocks(*(DecodeBlock(4, 1, 2, 2, 4),) * 4)
"""For devices that copy to shared memory by way of registers: nothing was measured there."""


def decode_blocks(macros: Macros, copies_beside: bool) -> DecodeBlocks:
    """The blocks for records of a form; `copies_beside`: whether the device copies beside its arithmetic."""
    if macros["FORM"] == "CODES":
        return DECODE_CODES if copies_beside else DECODE_CODES_SMALL
    fit = 4 if int(str(macros["WIDTH"])) <= 64 else 3
    many, few = DecodeBlock(4, 1, 4, 2, fit), DecodeBlock(1, 4, 4, 2, fit)
    return DecodeBlocks(many, many, many, few)


_DECODE = tuple(
    {**macros, **block.macros}
    for macros in _RECORDS
    for block in dict.fromkeys(decode_blocks(macros, True) + decode_blocks(macros, False))
)

_PREFILL = tuple({**macros, "APART": apart} for macros in _RECORDS for apart in (0, 1))
"""Kernels for them: as fast as can be, or with the bits that decode has."""

_LOOSE_RECORDS = _all(FORM=("LOOSE_VALUES", "LOOSE_CODES"), WIDTH=(16, 64, 128, 256), GROUP=(0,), APART=(0,))
"""Any others, up to a width."""


class FewBlock(NamedTuple):
    """A block of linear_few.cu.

    A warp takes `warp_outputs`, `token_warps` of them share the tokens; stages: chunks in shared memory; copy_warps:
    those beside them, which copy and multiply nothing, or 0 if all do both; prefetch: chunks that are asked for early.
    """

    tokens: int
    outputs: int
    warp_outputs: int
    token_warps: int
    stages: int
    copy_warps: int = 0
    prefetch: int = 0

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.outputs // self.warp_outputs * self.token_warps + self.copy_warps)

    @property
    def macros(self) -> Macros:
        """What the kernel calls these."""
        return {name.upper(): value for name, value in self._asdict().items()}


FewBlocks = Mapping[int, Mapping[int, tuple[FewBlock, FewBlock, FewBlock]]]
"""Bits of a weight -> up to so many tokens, the last for any number -> blocks for few outputs, more, and many."""

FEW_BLOCKS: FewBlocks = {
    4: {
        8: (FewBlock(8, 32, 16, 1, 6, 1, 4), FewBlock(8, 64, 16, 1, 6, 0, 4), FewBlock(8, 64, 16, 1, 6, 0, 4)),
        16: (FewBlock(16, 32, 16, 1, 6, 1), FewBlock(16, 64, 16, 1, 4), FewBlock(16, 128, 32, 1, 6)),
        32: (FewBlock(32, 64, 16, 1, 4), FewBlock(32, 64, 16, 1, 4), FewBlock(32, 128, 16, 1, 4)),
        64: (FewBlock(32, 64, 16, 1, 4, 2), FewBlock(32, 128, 16, 1, 4), FewBlock(64, 128, 16, 1, 3)),
    },
    8: {
        8: (FewBlock(8, 32, 16, 1, 6, 1, 4), FewBlock(8, 32, 16, 1, 6), FewBlock(8, 128, 16, 1, 4, 0, 4)),
        16: (FewBlock(16, 32, 8, 1, 5), FewBlock(16, 64, 16, 1, 4), FewBlock(16, 64, 16, 1, 4)),
        32: (FewBlock(32, 32, 16, 1, 4, 2), FewBlock(32, 64, 16, 1, 4), FewBlock(32, 128, 16, 1, 3)),
        64: (FewBlock(32, 64, 16, 1, 4), FewBlock(64, 64, 16, 1, 3), FewBlock(64, 64, 16, 1, 3)),
    },
    16: {
        8: (FewBlock(8, 32, 16, 1, 8), FewBlock(8, 32, 16, 1, 8), FewBlock(8, 64, 16, 1, 4)),
        16: (FewBlock(16, 64, 16, 1, 6), FewBlock(16, 64, 16, 1, 6), FewBlock(16, 64, 16, 1, 6)),
    },
}
"""The fastest of those that were measured on an H200, within the 227 KiB of shared memory of compute capability 9.0."""

FEW_BLOCKS_MIDDLE: FewBlocks = {
    4: {
        **FEW_BLOCKS[4],
        16: (*FEW_BLOCKS[4][16][:2], FewBlock(16, 64, 16, 1, 4)),
        64: (*FEW_BLOCKS[4][64][:2], FewBlock(32, 128, 16, 1, 4)),
    },
    8: {
        **FEW_BLOCKS[8],
        8: (*FEW_BLOCKS[8][8][:2], FewBlock(8, 64, 16, 1, 3)),
        32: (*FEW_BLOCKS[8][32][:2], FewBlock(32, 64, 16, 1, 4)),
    },
    16: FEW_BLOCKS[16],
}
"""The fastest there within the 163 KiB of compute capability 8.0."""

FEW_BLOCKS_SMALL: FewBlocks = {
    bits: {8: (FewBlock(8, 32, 8, 1, 3),) * 3, 16: (FewBlock(16, outputs, 8, 1, 3),) * 3}
    for bits, outputs in ((4, 64), (8, 32), (16, 32))
}
"""For every other device: one or two blocks of eight warps or so fit the 64 KiB of a Turing multiprocessor."""

FEW_TABLES = (FEW_BLOCKS, FEW_BLOCKS_MIDDLE, FEW_BLOCKS_SMALL)

FEW_GROUPS: Mapping[int, tuple[int, ...]] = {4: (32, 64, 128), 8: (32, 64, 128), 16: (0,)}
"""Bits of a weight -> its group sizes."""

_FEW = tuple(
    {**block.macros, "BITS": bits, "GROUP": group}
    for bits, groups in FEW_GROUPS.items()
    for block in sorted({block for table in FEW_TABLES for blocks in table[bits].values() for block in blocks})
    for group in groups
)

VARIANTS: Mapping[str, tuple[Macros, ...]] = {
    "activate": _all(ACTIVATION=ACTIVATIONS, RUN=(1, 8)),
    "add_bias": _all(OUT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT, RUN=(1, 8)),
    "add_rows": _all(TABLE=HALF_OR_FLOAT, RUN=(1, 8)),
    "append": _all(WIDE=(0, 1)),
    "attend_decode": _DECODE,
    "attend_prefill": (*_PREFILL, *_LOOSE_RECORDS),
    "expand": _all(STORED=HALF_OR_FLOAT),
    "gather": (
        *_all(TABLE=HALF_OR_FLOAT, OUT=("half",), RUN=(1, 8)),
        *_all(TABLE=("float",), OUT=("float",), RUN=(1, 8)),
    ),
    "layer_norm": _all(WEIGHT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT, HELD=(0, 2), WHOLE=(0, 1)),
    "linear_few": _FEW,
    "sample": _all(LOGITS=HALF_OR_FLOAT),
}
"""The macros' values with which an operator's file is compiled, for each operator."""
