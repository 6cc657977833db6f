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

_DECODE = tuple({**macros, "TEAM": team} for macros in _RECORDS for team in (1, 4))
"""Kernels for them, with a warp for each head, or with four."""

_PREFILL = tuple({**macros, "APART": apart} for macros in _RECORDS for apart in (0, 1))
"""Kernels for them: as fast as can be, or with the bits that decode has."""

_LOOSE_RECORDS = _all(FORM=("LOOSE_VALUES", "LOOSE_CODES"), WIDTH=(16, 64, 128, 256), GROUP=(0,), APART=(0,))
"""Any others, up to a width."""


class FewBlock(NamedTuple):
    """A block of linear_few.cu in tiles of 8 tokens and of 16 outputs.

    A warp takes `warp_rows` tiles of outputs, `token_warps` of them share the tokens; stages: chunks in shared memory.
    """

    token_tiles: int
    row_tiles: int
    warp_rows: int
    token_warps: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_tiles // self.warp_rows * self.token_warps

    @property
    def macros(self) -> Macros:
        """What the kernel calls these."""
        return {name.upper(): value for name, value in self._asdict().items()}


FEW_BLOCKS: Mapping[int, Mapping[int, tuple[FewBlock, FewBlock]]] = {
    4: {
        1: (FewBlock(1, 2, 1, 1, 6), FewBlock(1, 4, 1, 1, 6)),
        2: (FewBlock(2, 2, 1, 1, 8), FewBlock(2, 4, 1, 1, 4)),
        4: (FewBlock(4, 4, 1, 1, 4), FewBlock(4, 8, 1, 1, 3)),
    },
    8: {
        1: (FewBlock(1, 2, 1, 1, 6), FewBlock(1, 4, 1, 1, 4)),
        2: (FewBlock(2, 2, 1, 1, 4), FewBlock(2, 4, 1, 1, 4)),
        4: (FewBlock(4, 4, 1, 1, 4), FewBlock(4, 4, 1, 1, 4)),
    },
    16: {
        1: (FewBlock(1, 2, 1, 1, 8), FewBlock(1, 4, 1, 1, 4)),
        2: (FewBlock(2, 4, 1, 1, 6), FewBlock(2, 4, 1, 1, 6)),
    },
}
"""Bits of a weight -> up to so many tiles of tokens -> the blocks for few outputs, and for many.

The fastest of those that were measured on an H200; the last one takes any number of tokens. They need 163 KiB of shared
memory: compute capability 8.0, 9.0 and 10.0 have it.
"""

FEW_BLOCKS_SMALL: Mapping[int, Mapping[int, tuple[FewBlock, FewBlock]]] = {
    bits: {tiles: (FewBlock(tiles, rows, 1, 1, 3),) * 2 for tiles, rows in ((1, 2), (2, most))}
    for bits, most in ((4, 4), (8, 2), (16, 2))
}
"""The same for every other device: within 64 KiB, so that a Turing multiprocessor has one or two of them."""

FEW_GROUPS: Mapping[int, tuple[int, ...]] = {4: (32, 64, 128), 8: (32, 64, 128), 16: (0,)}
"""Bits of a weight -> its group sizes."""

_FEW = tuple(
    {**block.macros, "BITS": bits, "GROUP": group}
    for bits, groups in FEW_GROUPS.items()
    for block in sorted(
        {block for table in (FEW_BLOCKS, FEW_BLOCKS_SMALL) for blocks in table[bits].values() for block in blocks}
    )
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
    "layer_norm": _all(WEIGHT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT, HELD=(0, 2)),
    "linear_few": _FEW,
    "sample": _all(LOGITS=HALF_OR_FLOAT),
}
"""The macros' values with which an operator's file is compiled, for each operator."""
