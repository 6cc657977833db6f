"""The cost model of a block whose rows come and go, beside such a block that is walked through pass by pass."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.machine.plain import plain_machine
from flexref.planner.program.blocks import phases
from flexref.planner.program.cost_flows import cache_flows, crossing_flows
from flexref.planner.program.search import search
from flexref.planner.program.task import Limits, Turnover
from flexref.policy import Shares
from flexref.testing.tasks import all_shares, block_costs, moved_bytes, plain_task

Kind = tuple[int, int]
"""(tokens of the prompt, new tokens)."""

HOST = Shares(0, 1, 0)


@dataclass
class Walked:
    """What a block did: passes, and in all of them together rows, tokens of prompts, and records that were found."""

    passes: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    past_tokens: int = 0
    alive: list[list[int]] = field(default_factory=list)


def walked(rows: list[Kind], places: int) -> Walked:
    """Rows take the places of those that ended, the longest first; one reads its prompt and has a token in a pass."""
    found, waiting = Walked(), deque(sorted(rows, key=lambda row: -row[1]))
    while waiting or found.alive:
        while waiting and len(found.alive) < places:
            prompt, new = waiting.popleft()
            found.alive.append([prompt, new, 0])
        found.passes += 1
        for row in found.alive:
            found.rows += 1
            if row[2]:
                found.past_tokens += row[0] + row[2] - 1
            else:
                found.prompt_tokens += row[0]
            row[2] += 1
        found.alive = [row for row in found.alive if row[2] < row[1]]
    return found


def turnover_of(rows: list[Kind]) -> Turnover:
    return Turnover.of([(*kind, count) for kind, count in Counter(rows).items()])


KINDS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=2, max_size=40).filter(
    lambda rows: len({new for _, new in rows}) > 1
)


@given(KINDS, st.integers(1, 50))
def test_what_rows_do_in_all_is_counted_exactly(rows: list[Kind], places: int) -> None:
    """However full the block is: tokens and records are those of the rows."""
    turnover, found = turnover_of(rows), walked(rows, places)
    held = min(places, len(rows))
    prompts, longest = [prompt for prompt, _ in rows], max(new for _, new in rows)
    task = plain_task(prompt_tokens=sum(prompts) / len(rows), new_tokens=longest, turnover=turnover)
    _, decode = phases(task)
    full, thin, times = (float(each[0]) for each in task.turned_over(len(rows), np.array([float(held)])))
    assert full * held + times * thin == pytest.approx(len(rows), rel=2e-3)
    rounds = len(rows) * decode.passes  # of a row's place for one pass
    assert rounds == pytest.approx(found.rows)
    assert rounds * decode.past_tokens == pytest.approx(found.past_tokens)
    assert rounds * decode.prompts * decode.prompt_tokens == pytest.approx(found.prompt_tokens)
    assert rounds * decode.new_tokens == pytest.approx(found.prompt_tokens + found.rows - len(rows))


@pytest.mark.parametrize("places", [4, 16, 64, 256, 1000])
def test_the_passes_of_a_job_are_about_those_of_such_a_block(places: int) -> None:
    draw = np.random.default_rng(places)
    pairs = zip(draw.integers(16, 513, 1000).tolist(), draw.integers(1, 129, 1000).tolist(), strict=True)
    rows = list(pairs)
    found, longest = walked(rows, places), max(new for _, new in rows)
    task = plain_task(new_tokens=longest, turnover=turnover_of(rows))
    full, thin, times = (float(each[0]) for each in task.turned_over(len(rows), np.array([float(places)])))
    assert (full + times) * task.row_tokens == pytest.approx(found.passes, rel=0.02)
    assert (0 < thin < places) == (places == 1000)


def test_a_round_of_a_full_block_moves_its_weights_once_per_pass_and_its_rows_records_once_per_decode_pass() -> None:
    rows = [(64, 16), (32, 4), (16, 10)]
    task = plain_task(prompt_tokens=112 / 3, new_tokens=16, turnover=turnover_of(rows))
    costs = block_costs(task, plain_machine(), rows=3, groups=2)
    moved = moved_bytes(costs, all_shares(HOST, HOST, HOST))
    passes = 10
    assert moved["host->device", "weights"] == pytest.approx(passes * sum(task.stage_bytes))
    records = task.spec.layers * 6 * task.record_bytes
    past = sum((new - 1) * prompt + (new - 1) * (new - 2) // 2 for prompt, new in rows) / 3
    assert moved["host->device", "cache"] == pytest.approx(records * past)
    fed = (112 + 30 - 3) / 3
    assert moved["device->host", "cache"] == pytest.approx(records * fed)
    hidden = (task.spec.layers + 1) * 6 * task.spec.width * 4
    assert moved["host->device", "activations"] == pytest.approx(hidden * fed)


def test_with_attention_on_the_host_prompts_records_go_there_and_of_decoding_rows_their_queries() -> None:
    rows = [(64, 16), (32, 4)]
    task = plain_task(prompt_tokens=48.0, new_tokens=16, turnover=turnover_of(rows), attention_on="host")
    blocks = block_costs(task, plain_machine(), rows=1, groups=2).blocks
    _, decode = phases(task)
    leaving = (flow for flow in cache_flows(task, blocks, decode) if flow.link == "device->host")
    (out,) = (flow for flow in leaving if flow.in_place > 0)
    visits = 10 * task.spec.layers * 2
    assert out.times.item() == pytest.approx(visits)
    assert out.nbytes[0] * 10 == pytest.approx(48 * task.record_bytes)
    queries, contexts = crossing_flows(task, blocks, decode, "float32")
    assert contexts.nbytes[0] * 10 == pytest.approx(9 * task.spec.width * 4)
    assert queries.times.item() == pytest.approx(visits)


def test_a_job_of_rows_that_come_and_go_has_the_tokens_per_second_of_the_whole_job() -> None:
    rows = [(64, new) for new in range(1, 32)] * 4
    task = plain_task(new_tokens=31, turnover=turnover_of(rows))
    found = search(plain_machine(), task, Limits(32, 4, len(rows)))
    best = found.ranked[0]
    assert best.answer.score == pytest.approx(1 / best.tokens_per_s)
    assert best.solution.tokens_per_s == pytest.approx(best.tokens_per_s)
    assert best.solution.job_s == pytest.approx(best.answer.score * task.row_tokens * len(rows))
    assert best.solution.prefill_s == 0
    assert found.pruned > found.solved
    assert 1 / found.ranked[-1].answer.score <= 1 / best.answer.score
