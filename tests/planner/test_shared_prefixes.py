"""Rows that share a prefix are planned as rows that read and keep it once."""

import pytest

from flexref.architecture.published import size_named
from flexref.block.rows import RowLengths
from flexref.machine.plain import plain_machine
from flexref.planner.situation import Situation
from flexref.policy import Policy
from flexref.storage.random_weights import random_file

LONG, SHARED, ROWS = 1600, 1472, 64


def job(*, shared: bool) -> list[RowLengths]:
    return [RowLengths(LONG, 32, 0, SHARED, 1) if shared else RowLengths(LONG, 32)] * ROWS


@pytest.mark.parametrize("base", [Policy(share_prefixes=False), Policy(attention_on="host")])
def test_policies_under_which_nothing_is_shared_are_planned_for_whole_prompts(base: Policy) -> None:
    spec = size_named("125m")
    assert spec is not None
    shared, alone = (
        Situation(random_file(spec), plain_machine(), job(shared=each), base).task for each in (True, False)
    )
    assert shared == alone


def test_a_prefix_is_counted_once_for_all_rows_of_the_job() -> None:
    spec = size_named("125m")
    assert spec is not None
    task = Situation(random_file(spec), plain_machine(), job(shared=True), Policy()).task
    assert task.prompt_tokens == pytest.approx(LONG - SHARED + SHARED / ROWS)
    assert task.prompt_tokens_most == LONG - SHARED + SHARED // ROWS
