"""Strategies for what tests vary: numbers, cache layouts, ragged rows, models, prompts, policies; they know no port."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from flexref.architecture.spec import ACTIVATIONS, ModelSpec
from flexref.backend.records import RecordLayout
from flexref.policy import Policy, Shares
from flexref.units import MIB, TIERS

Values = npt.NDArray[Any]

EVERY_KIND = ("normal", "offset", "constant", "tiny", "mixed", "zero")
"""How the numbers of an array are spread; see `numbers`."""

EXTREMES = (3e4, -3e4, 1e-7, -1e-7, 1e-30, 0.0, -0.0, 1.0, -1.0)
"""Values that `mixed` arrays hold among normal ones: within float16's range, below its smallest number too."""

seeds = st.integers(0, 2**32 - 1)


def numbers(shape: tuple[int, ...], dtype: str, kind: str, seed: int) -> Values:
    """An array of `shape`: `normal`; `offset`, normal around a large mean; `constant` rows; `tiny`; `mixed`; `zero`.

    Numbers come from a seed and not one by one from hypothesis: what matters in them is their spread.
    """
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape)
    if kind == "offset":
        values = 300 + values
    elif kind == "constant":
        values = np.broadcast_to(values[..., :1], shape)
    elif kind == "tiny":
        values = values * 1e-6
    elif kind == "mixed":
        values = np.where(draw.random(shape) < 0.1, draw.choice(EXTREMES, shape), values)
    elif kind == "zero":
        values = values * 0
    return np.ascontiguousarray(values, dtype)


@st.composite
def arrays(
    draw: st.DrawFn, shape: tuple[int, ...], dtype: str = "float32", kinds: tuple[str, ...] = EVERY_KIND
) -> Values:
    """Arrays of one shape and type, spread in one of `kinds`."""
    return numbers(shape, dtype, draw(st.sampled_from(kinds)), draw(seeds))


USUAL_WIDTHS, USUAL_GROUPS = (64, 128, 80), (64, 32)
"""Heads and groups of published models, more often than others: a port may have kernels for them alone."""


@st.composite
def layouts(draw: st.DrawFn, dtype: str, schemes: tuple[str, ...] = ("none", "int4")) -> RecordLayout:
    """Cache layouts of small models: head widths that fill their last group, or do not."""
    heads = draw(st.integers(1, 4))
    usual = draw(st.sampled_from((False, False, True)))
    head_width = draw(st.sampled_from(USUAL_WIDTHS if usual else (1, 4, 8, 12, 16, 17, 33)))
    group_size = draw(st.sampled_from(USUAL_GROUPS if usual else (4, 7, 16, 32, 64)))
    return RecordLayout(heads, head_width, dtype, draw(st.sampled_from(schemes)), group_size)


LONG_PAST, LONG_NEW = (0, 15, 64, 129, 300), (1, 17, 64, 70)
"""Beyond, and at the edges of, the tiles of keys and of queries of kernels, and the parts that they add up."""

DECODED_PAST = (300, 64, 129)
"""Of a row with one new token, which sees whole chunks of keys."""


@st.composite
def ragged(draw: st.DrawFn, long: bool = True) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(past, new) tokens of one to four rows, at least one new one each, as in every pass.

    `long`: sometimes many; one row then decodes, as most do in the passes of a job.
    """
    rows = draw(st.integers(1, 4))
    if not long or draw(st.sampled_from((True, True, False))):
        past, new = st.integers(0, 12), st.integers(1, 6)
        return tuple(draw(past) for _ in range(rows)), tuple(draw(new) for _ in range(rows))
    others = [(draw(st.sampled_from(LONG_PAST)), draw(st.sampled_from(LONG_NEW))) for _ in range(rows - 1)]
    others.insert(draw(st.integers(0, rows - 1)), (draw(st.sampled_from(DECODED_PAST)), 1))
    past_of, new_of = zip(*others, strict=True)
    return past_of, new_of


@st.composite
def specs(draw: st.DrawFn, layers: int = 3, positions: int = 48) -> ModelSpec:
    """Tiny models of every variant that `ModelSpec` can say; at most `layers` layers, `positions` tokens long."""
    heads = draw(st.sampled_from((1, 2, 4)))
    width = heads * draw(st.sampled_from((4, 8, 12)))
    pre_norm = draw(st.booleans())
    return ModelSpec(
        name="tiny",
        vocabulary=draw(st.integers(17, 90)),
        positions=positions,
        width=width,
        embed_width=draw(st.sampled_from((width, width, max(2, width // 2), width + 4))),
        layers=draw(st.integers(1, layers)),
        heads=heads,
        ffn_width=draw(st.sampled_from((width, 2 * width, 4 * width, 3 * width + 1))),
        pre_norm=pre_norm,
        final_norm=pre_norm and draw(st.booleans()),
        bias=draw(st.booleans()),
        affine_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        tied_head=draw(st.booleans()),
    )


def token_rows(
    vocabulary: int, rows: int = 5, shortest: int = 1, longest: int = 12
) -> st.SearchStrategy[list[list[int]]]:
    """Prompts as token ids, one to `rows` of them, of different lengths."""
    token = st.integers(0, vocabulary - 1)
    return st.lists(st.lists(token, min_size=shortest, max_size=longest), min_size=1, max_size=rows)


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    """Shares of three tiers: all on one, or any mixture."""
    corners = [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
    device, host = draw(st.one_of(st.sampled_from(corners), st.tuples(st.floats(0, 1), st.floats(0, 1))))
    total = device + host
    return Shares.of(device, host) if total <= 1 else Shares.of(device / total, 1 - device / total)


def one_home(shares: Shares) -> Shares:
    """All of it on the tier that has most: rows of one home are computed in the order in which they entered."""
    home = max(TIERS, key=lambda tier: getattr(shares, tier))
    return Shares(**{tier: float(tier == home) for tier in TIERS})


@st.composite
def policies(draw: st.DrawFn, /, cache_schemes: tuple[str, ...] = ("none", "int4"), **fixed: Any) -> Policy:
    """Policies of every kind for a few rows; `fixed` names fields that must be as they are given."""
    drawn: dict[str, Any] = {
        "weights": draw(shares()),
        "cache": draw(shares()),
        "activations": draw(shares()),
        "rows_per_group": draw(st.integers(1, 4)),
        "groups_per_block": draw(st.integers(1, 3)),
        "overlap": draw(st.booleans()),
        "attention_on": draw(st.sampled_from(("device", "host"))),
        "cache_scheme": draw(st.sampled_from(cache_schemes)),
        "cache_group_size": draw(st.sampled_from((4, 16, 64))),
        "read_ahead_gib": draw(st.sampled_from((None, 0.0, 24 / MIB, 1.0))),
    }
    whole = {**drawn, **fixed}
    if whole["attention_on"] == "host":
        whole.setdefault("host_attention_share", draw(st.sampled_from((1.0, 0.5, 0.3, 0.0))))
    return Policy(**whole)
