"""Every variant of every kernel: what the port may ask for is what continuous integration has compiled."""

from collections.abc import Mapping
from itertools import product

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

_ATTEND = tuple({**macros, "APART": apart} for macros in _RECORDS for apart in (0, 1))
"""Kernels for them: whose decode and prefill are as fast as can be, or of the same bits."""

_LOOSE_RECORDS = _all(FORM=("LOOSE_VALUES", "LOOSE_CODES"), WIDTH=(16, 64, 128, 256), GROUP=(0,), APART=(0,))
"""Any others, up to a width."""

IN_ORDER_BLOCKS: Mapping[int, tuple[tuple[int, int, int], ...]] = {
    1: ((2, 1, 8), (2, 1, 8)),
    2: ((2, 1, 5), (4, 1, 5)),
    4: ((2, 2, 5), (4, 1, 5)),
    8: ((2, 2, 4), (4, 1, 4)),
}
"""Blocks of linear_in_order.cu by eights of tokens, for few outputs and for many: ROW_TILES, TOKEN_WARPS, STAGES.

The fastest of those that were measured on an H200; no bit depends on them.
"""

VARIANTS: Mapping[str, tuple[Macros, ...]] = {
    "activate": _all(ACTIVATION=ACTIVATIONS, RUN=(1, 8)),
    "add_bias": _all(OUT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT, RUN=(1, 8)),
    "add_rows": _all(TABLE=HALF_OR_FLOAT, RUN=(1, 8)),
    "append": _all(WIDE=(0, 1)),
    "attend_decode": _ATTEND,
    "attend_prefill": (*_ATTEND, *_LOOSE_RECORDS),
    "expand": _all(STORED=HALF_OR_FLOAT),
    "gather": (
        *_all(TABLE=HALF_OR_FLOAT, OUT=("half",), RUN=(1, 8)),
        *_all(TABLE=("float",), OUT=("float",), RUN=(1, 8)),
    ),
    "layer_norm": _all(WEIGHT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT, HELD=(0, 2)),
    "linear_int4": _all(TOKEN_TILES=(1, 2, 4, 8), STAGES=(2, 4), OUT=HALF_OR_FLOAT, BIAS=HALF_OR_FLOAT),
    "linear_in_order": tuple(
        macros
        for tiles, blocks in IN_ORDER_BLOCKS.items()
        for rows, warps, stages in sorted(set(blocks))
        for macros in _all(
            TOKEN_TILES=(tiles,),
            ROW_TILES=(rows,),
            TOKEN_WARPS=(warps,),
            STAGES=(stages,),
            OUT=HALF_OR_FLOAT,
            BIAS=HALF_OR_FLOAT,
        )
    ),
    "sample": _all(LOGITS=HALF_OR_FLOAT),
}
"""The macros' values with which an operator's file is compiled, for each operator."""
