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

_HALVES = _all(WIDTH=(16, 64, 80, 128))

_CODES = (
    *_all(WIDTH=(16,), GROUP=(16,)),
    *_all(WIDTH=(64,), GROUP=(32, 64)),
    *_all(WIDTH=(80,), GROUP=(64,)),
    *_all(WIDTH=(128,), GROUP=(32, 64, 128)),
)
"""Cache records whose layout kernels know as a constant: the head widths of the published models, and a small one."""


class DecodeBlock(NamedTuple):
    """A block of decode attention: `heads` of an item, `team` warps each; see attend_decode.cuh.

    chunk_steps: steps of 16 keys whose records come at once; stages: such chunks in shared memory, none where records
    come to registers; min_blocks: so many blocks the registers of a multiprocessor are made to hold.
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
    """Those of one form: for items by their number, from many to the fewest; for some of short rows; for whole rows."""

    many: DecodeBlock
    some: DecodeBlock
    several: DecodeBlock
    few: DecodeBlock
    short: DecodeBlock
    rows: DecodeBlock | None


def _stages(stages: int, min_blocks: int) -> DecodeBlock:
    """A block for one head of halves."""
    return DecodeBlock(1, 4, 4, stages, min_blocks)


_FOUR_HEADS = DecodeBlock(4, 1, 0, 0, 3), DecodeBlock(4, 1, 0, 0, 4)
"""Blocks whose halves come to registers: for any width, and for 64 at most."""

_HALVES_LARGE = DecodeBlocks(
    many=_FOUR_HEADS[0],
    some=_stages(3, 4),
    several=_stages(4, 3),
    few=_stages(8, 1),
    short=DecodeBlock(1, 4, 2, 4, 5),
    rows=_stages(4, 3),
)
_CODES_LARGE = DecodeBlocks(
    many=DecodeBlock(4, 1, 4, 2, 4),
    some=DecodeBlock(2, 2, 8, 3, 3),
    several=DecodeBlock(2, 2, 8, 3, 3),
    few=DecodeBlock(1, 4, 8, 4, 4),
    short=DecodeBlock(2, 2, 8, 3, 3),
    rows=DecodeBlock(4, 2, 8, 2, 1),
)
"""The fastest of those that were measured on an H200, for records of halves and of codes."""

_HALVES_MIDDLE = _HALVES_LARGE._replace(few=_HALVES_LARGE.several)
"""The fastest there within 99 KiB of shared memory."""

_HALVES_SMALL = DecodeBlocks(*_FOUR_HEADS[:1] * 2, *(DecodeBlock(1, 2, 2, 2, 3),) * 3, None)
_CODES_SMALL = DecodeBlocks(*(DecodeBlock(4, 1, 2, 2, 4),) * 6)
"""For devices that copy to shared memory by way of registers: nothing was measured there."""

COPYING_CAPABILITY = (8, 0)
"""Devices since then copy to shared memory beside their arithmetic."""

LARGE_CAPABILITIES = ((8, 0), (9, 0), (10, 0))
"""Devices whose blocks may have 163 KiB of shared memory or more."""


def decode_blocks(macros: Macros, capability: tuple[int, int]) -> DecodeBlocks:
    """The blocks for records of a layout on a device."""
    is_small = capability < COPYING_CAPABILITY
    if "GROUP" in macros:
        return _CODES_SMALL if is_small else _CODES_LARGE
    blocks = _HALVES_LARGE if capability in LARGE_CAPABILITIES else _HALVES_MIDDLE
    four_heads = _FOUR_HEADS[int(str(macros["WIDTH"])) <= 64]
    return _HALVES_SMALL._replace(many=four_heads, some=four_heads) if is_small else blocks._replace(many=four_heads)


def decode_operator(macros: Macros, block: DecodeBlock) -> str:
    """The operator, and its kernel, that takes records of a layout with a block."""
    if "GROUP" in macros:
        return "attend_decode_codes"
    return "attend_decode_few" if block.stages else "attend_decode_halves"


def _decode(operator: str) -> tuple[Macros, ...]:
    """The variants of one operator."""
    return tuple(
        {**macros, **block.macros}
        for macros in (*_HALVES, *_CODES)
        for block in dict.fromkeys(decode_blocks(macros, LARGE_CAPABILITIES[0]) + decode_blocks(macros, (0, 0)))
        if block is not None and decode_operator(macros, block) == operator
    )


_RECORDS = (
    *({"FORM": "VALUES", **macros, "GROUP": 0} for macros in _HALVES),
    *({"FORM": "CODES", **macros} for macros in _CODES),
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
    **{
        operator: _decode(operator) for operator in ("attend_decode_codes", "attend_decode_few", "attend_decode_halves")
    },
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
