"""What is chosen where all of a job fits on the device: it runs within its budgets, and its shape follows the rule."""

from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.published import size_named
from flexref.block.rows import RowLengths
from flexref.engine.request import Request
from flexref.loading import load
from flexref.planner.plain_choice import (
    PROMPT_TOKENS_MOST,
    ROWS_LEAST,
    ROWS_MOST,
    SCORED_TOKENS_MOST,
    SPARE_PART,
    PlainChoice,
    shapes,
)
from flexref.policy import Policy, Shares
from flexref.storage.names import resolve
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import WeightFile, open_weight_file
from flexref.units import GIB, Tier

DEMO = open_weight_file(resolve("demo"))
CAPS = NumpyBackend().caps


def chosen(file: WeightFile, device: int | None, rows: list[RowLengths], **keep: Any) -> Policy | None:
    budgets = {Tier.DEVICE: device, Tier.HOST: 1 << 30, Tier.DISK: None}
    return PlainChoice(file, CAPS, budgets, rows, keep).policy()


def least_device(rows: list[RowLengths], **keep: Any) -> int:
    """The smallest budget, to 4 KiB, for which the choice is plain."""
    low, high = 0, 1 << 19
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chosen(DEMO, middle << 12, rows, **keep) is not None else (middle, high)
    return high << 12


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_what_is_chosen_leaves_one_part_in_eight_of_the_device(rows: int) -> None:
    """At the smallest budget for which it is plain; nothing crosses a link, and the engine's own peak is the proof."""
    budget = least_device([RowLengths(5, 4)] * rows)
    with load("demo", device_mem_gib=budget / GIB) as engine:
        stats = engine.generate([[7, 8, 9, 10, 11]] * rows, Request(4, ignore_eos=True)).stats
    assert stats.policy == chosen(DEMO, budget, [RowLengths(5, 4)] * rows)
    assert stats.policy.weights == stats.policy.cache == stats.policy.activations == Shares()
    assert not any(count for kinds in stats.link_bytes.values() for count in kinds.values())
    # The session then expands what it can in all of the budget, which may be more than the choice counted with.
    assert stats.peak_bytes["device"] <= budget


def test_where_expanded_matrices_can_be_kept_they_are_reckoned_with() -> None:
    """The demo's halves take twice their bytes more as float32: a job that fits with and without them is plain."""
    rows = [RowLengths(5, 4)]
    assert DEMO.dtype == "float16"
    least = least_device(rows)
    assert least < (2 * DEMO.nbytes) * SPARE_PART // (SPARE_PART - 1)
    assert chosen(DEMO, least, rows) == chosen(DEMO, None, rows)


@given(
    st.lists(st.builds(RowLengths, st.integers(1, 3000), st.integers(2, 50)), min_size=1, max_size=700),
)
def test_groups_are_large_but_bounded_and_about_as_large(rows: list[RowLengths]) -> None:
    longest, found = max(row.prompt_tokens for row in rows), list(shapes(rows, {}))
    size, groups = found[0]
    assert size * groups >= len(rows)
    assert size * groups - len(rows) < groups
    assert size <= ROWS_MOST
    assert size * longest <= PROMPT_TOKENS_MOST or size <= ROWS_LEAST
    for size, groups in found:
        assert 1 <= groups <= 20
        assert size >= min(ROWS_LEAST, len(rows)) // 2
    per_block = [size * groups for size, groups in found]
    assert per_block[0] == max(per_block)


@given(st.integers(1, 2048), st.integers(1, 400))
def test_groups_that_score_are_bounded_by_their_tokens_alone(prompt: int, rows: int) -> None:
    found = list(shapes([RowLengths(prompt, 1, prompt // 2 + 1)] * rows, {}))
    assert all(size * prompt <= SCORED_TOKENS_MOST or size == 1 for size, _ in found)
    assert found[-1][0] == 1


def test_what_is_to_be_kept_is_kept() -> None:
    rows = [RowLengths(5, 4)] * 40
    keep = {"rows_per_group": 7, "groups_per_block": 3, "cache_scheme": "int4", "overlap": False}
    policy = chosen(DEMO, None, rows, **keep)
    assert policy is not None
    assert {name: getattr(policy, name) for name in keep} == keep
    alone = chosen(DEMO, None, rows, rows_per_group=7)
    assert alone is not None
    assert (alone.rows_per_group, alone.groups_per_block) == (7, 6)


def test_a_job_of_which_a_block_fits_has_several_blocks() -> None:
    rows = [RowLengths(60, 40)] * 2000
    policy = chosen(DEMO, 256 << 20, rows)
    assert policy is not None
    assert ROWS_LEAST <= policy.rows_per_block < 2000
    assert chosen(DEMO, 48 << 20, rows) is None


def test_a_model_that_does_not_fit_is_not_plain() -> None:
    assert chosen(random_file(size_named("1.3b")), 1 << 30, [RowLengths(5, 4)]) is None
    budgets = {Tier.DEVICE: None, Tier.HOST: 0, Tier.DISK: None}
    assert PlainChoice(DEMO, CAPS, budgets, [RowLengths(5, 4)], {}).policy() is None  # no way in
