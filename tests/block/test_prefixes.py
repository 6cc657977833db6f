"""Rows that begin alike share what they begin with, and have the same tokens, logits and scores, to the bit."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import CHUNK_TOKENS
from flexref.block.budgets import lasting_needs, loading_need, totals
from flexref.block.prefixes import PrefixFinder, chunks_of
from flexref.block.rows import Row
from flexref.block.state import BlockState
from flexref.engine.engine import Engine
from flexref.engine.events import Event, Notice
from flexref.engine.generation import GenerationJob
from flexref.engine.outcomes import generation, results
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Stats
from flexref.engine.scoring import ScoredRow
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.sampling.settings import SamplingSettings
from flexref.testing import strategies as own
from flexref.tiers.weights_plan import LOADING
from flexref.units import GIB, Tier

POSITIONS = 4 * CHUNK_TOKENS
SCRATCH_BYTES = 1 << 16
DEEP = ModelSpec("deep", 50, POSITIONS, 16, 16, 8, 2, 32)
SPEC = ModelSpec("alike", 50, POSITIONS, 16, 16, 2, 2, 32, eos_token_ids=(7, 11, 20, 30, 41))
STORED = st.sampled_from([("none", "float32"), ("int4", "float16")])

Logits = dict[int, list[npt.NDArray[np.float32]]]


@st.composite
def prompts(draw: st.DrawFn, most: int = 8) -> list[list[int]]:
    """Prompts of which many begin alike: a beginning of one may go on as another's, or be the whole prompt."""
    made = np.random.default_rng(draw(st.integers(0, 3)))
    texts = [made.integers(0, 50, POSITIONS).tolist() for _ in range(2)]
    forks = sorted(draw(st.lists(st.integers(0, POSITIONS - 12), min_size=1, max_size=2)))
    texts.append(texts[0][: forks[0]] + texts[1][forks[0] :])
    texts.append(texts[0][: forks[-1]] + made.integers(0, 50, POSITIONS - forks[-1]).tolist())
    found = []
    for _ in range(draw(st.integers(1, most))):
        length = draw(st.sampled_from((3, 64, 65, 66, 100, 128, 129, 140, 200)))
        own_tokens = draw(st.integers(0, 2))
        text = texts[draw(st.integers(0, len(texts) - 1))][: length - own_tokens]
        found.append(text + draw(st.lists(st.integers(0, 49), min_size=own_tokens, max_size=own_tokens)))
    return found


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Of every kind under which rows may share; few places, so that prefixes come and go."""
    chunk = draw(st.none() | st.sampled_from((1, 7, 64, 100)))
    return draw(own.policies(attention_on="device", prompt_chunk_tokens=chunk))


def requests(asked: list[list[int]], data: st.DataObject) -> list[RowRequest]:
    limits = data.draw(st.lists(st.integers(1, 5), min_size=len(asked), max_size=len(asked)), label="limits")
    ends = data.draw(st.lists(st.booleans(), min_size=len(asked), max_size=len(asked)), label="ends are ignored")
    sampled = [SamplingSettings(), SamplingSettings(1.0, 5, 0.9, seed=3)]
    return [
        RowRequest(prompt, Request(limit, sampled[number % 2], ignore_eos=ignored))
        for number, (prompt, limit, ignored) in enumerate(zip(asked, limits, ends, strict=True))
    ]


@contextmanager
def watched_blocks(engine: Engine) -> Iterator[list[BlockState]]:
    """The blocks of the jobs within; afterwards each has given every place back, and every byte was as planned."""
    made = list[BlockState]()
    allocate = BlockState.allocate

    def kept(block: BlockState, arenas: Any) -> None:
        made.append(block)
        allocate(block, arenas)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockState, "allocate", kept)
        yield made
    for block in made:
        admission, cache = block.rows.admission, block.plan.cache
        assert admission.admitted == admission.retired
        assert not any(group.rows or group.reads for group in block.groups)
        for room, places in zip(cache.groups, admission.places, strict=True):
            assert places.rows_left == room.rows
            assert {tier: end - first for tier, first, end in places.free_runs()} == {
                tier: tokens for tier, tokens in room.tokens.items() if tokens
            }
        prefixes = admission.prefixes._places
        assert prefixes._free == ([(0, cache.prefix_tokens)] if cache.prefix_tokens else [])


def as_planned(engine: Engine, blocks: list[BlockState], stats: Stats) -> None:
    """The peaks of the job are those that were planned for its blocks, beside the first of which weights may load."""
    weights = blocks[0].weights.plan
    lasting = lasting_needs(weights, engine.backend.caps)
    loading = totals([*lasting, loading_need(weights)])
    planned = [totals([*lasting, *block.plan.needs()]) for block in blocks]
    beside = totals([*lasting, *blocks[0].plan.needs(), (Tier.HOST, LOADING, weights.loading_beside_bytes)])
    for tier in Tier:
        most = max(sums[tier] for sums in planned)
        assert stats.peak_bytes[tier.value] in (most, max(most, loading[tier]), max(most, beside[tier]))


def logits_of(found: Logits) -> Any:
    """Keeps the logits of every row's steps in order."""

    def keep(rows: npt.NDArray[np.int64], _: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        for row, of_row in zip(rows.tolist(), values, strict=True):
            found.setdefault(row, []).append(of_row.copy())

    return keep


def same_logits(found: Logits, expected: Logits) -> None:
    assert found.keys() == expected.keys()
    for row, values in expected.items():
        np.testing.assert_array_equal(found[row], values, err_msg=f"row {row}")


def cache_bytes(stats: Stats, link: str) -> int:
    return stats.link_bytes[link].get("cache", 0)


@settings(max_examples=settings.default.max_examples // 3)  # each example is two whole jobs
@given(asked=prompts(), stored=STORED, policy=policies(), limit=st.integers(1, 5))
def test_rows_generate_the_same_bits_whether_they_share_or_not(
    model_file: Any, asked: list[list[int]], stored: tuple[str, str], policy: Policy, limit: int
) -> None:
    request, logits = Request(limit), (dict[int, Any](), dict[int, Any]())
    apart = policy.changed(share_prefixes=False)
    with load(model_file(SPEC, *stored), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        with watched_blocks(engine) as blocks:
            shared = engine.generate(asked, request, on_logits=logits_of(logits[0]))
        as_planned(engine, blocks, shared.stats)
        alone = engine.generate(asked, request, policy=apart, on_logits=logits_of(logits[1]))
    assert shared.outputs == alone.outputs
    same_logits(*logits)
    tokens = sum(map(len, asked))
    assert alone.stats.prompt_tokens == tokens
    assert alone.stats.shared_prefix_tokens == alone.stats.shared_prefix_link_bytes == 0
    assert shared.stats.prompt_tokens + shared.stats.shared_prefix_tokens == tokens
    assert shared.stats.rows_admitted == shared.stats.rows_retired == len(asked)


@settings(max_examples=settings.default.max_examples // 3)  # each example is three whole jobs
@given(asked=prompts(most=10), stored=STORED, policy=policies(), data=st.data())
def test_a_stream_has_the_same_results_whether_its_rows_share_or_not(
    model_file: Any, asked: list[list[int]], stored: tuple[str, str], policy: Policy, data: st.DataObject
) -> None:
    """Also rows that begin again from some of their tokens; of the stream little is seen ahead."""
    first = requests(asked, data)
    with load(model_file(SPEC, *stored), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        apart = policy.changed(share_prefixes=False)
        whole = {result.number: result for result in engine.run(iter(first), policy=apart)}
        again = list[RowRequest]()
        for number, request in enumerate(first):
            output = whole[number].output
            assert output is not None
            kept = data.draw(st.integers(0, max(0, len(output.token_ids) - 1)), label=f"tokens of row {number}")
            again.append(RowRequest(request.prompt, request.request, tuple(output.token_ids[:kept])))
        window = data.draw(st.integers(1, 4), label="window")
        with watched_blocks(engine), pytest.MonkeyPatch.context() as patch:
            patch.setattr("flexref.engine.generation._window", lambda policy: window)
            found = list(engine.run(iter(again), policy=policy))
    assert sorted(result.number for result in found) == sorted(whole)
    for result in found:
        assert result == whole[result.number]


@settings(max_examples=settings.default.max_examples // 3)  # each example is two whole jobs
@given(asked=prompts(), stored=STORED, policy=policies(), data=st.data())
def test_rows_have_the_same_scores_whether_they_share_or_not(
    model_file: Any, asked: list[list[int]], stored: tuple[str, str], policy: Policy, data: st.DataObject
) -> None:
    rows = [
        ScoredRow(tuple(prompt), len(prompt) - data.draw(st.sampled_from((1, 2, min(70, len(prompt) - 1)))))
        for prompt in asked
    ]
    with load(model_file(SPEC, *stored), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        with watched_blocks(engine) as blocks:
            shared = engine.score(rows, keep_logits=True, top=2)
        as_planned(engine, blocks, shared.stats)
    apart = policy.changed(share_prefixes=False)
    with load(model_file(SPEC, *stored), policy=apart, scratch_bytes=SCRATCH_BYTES) as engine:
        alone = engine.score(rows, keep_logits=True, top=2)
    for mine, others in zip(shared.rows, alone.rows, strict=True):
        for name in ("logprobs", "top_ids", "top_logprobs", "normalizer", "greedy", "logits"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(others, name), err_msg=name)
    tokens = sum(len(row.token_ids) - 1 for row in rows)
    assert shared.stats.prompt_tokens + shared.stats.shared_prefix_tokens == tokens


BEGINNING = [1 + token % 40 for token in range(3 * CHUNK_TOKENS)]
ON_HOST = Policy(cache=Shares(0, 1, 0), rows_per_group=3, overlap=False)


@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=2, max_size=6),
    groups=st.integers(2, 3),
    cache_scheme=st.sampled_from(("none", "int4")),
)
def test_what_is_spared_of_a_link_is_what_crosses_it_without_sharing(
    model_file: Any, rows: list[tuple[int, int]], groups: int, cache_scheme: str
) -> None:
    """All rows are there at once, and prompts are read whole."""
    policy = ON_HOST.changed(groups_per_block=groups, cache_scheme=cache_scheme, cache_group_size=8)
    asked = [
        RowRequest([*BEGINNING, *[number] * tail], Request(limit, ignore_eos=True))
        for number, (tail, limit) in enumerate(rows)
    ]
    with load(model_file(SPEC), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        shared, alone = (
            generation(GenerationJob(engine.session, asked, each, all_at_once=True)).stats
            for each in (policy, policy.changed(share_prefixes=False))
        )
    spared = cache_bytes(alone, "host->device") - cache_bytes(shared, "host->device")
    assert shared.shared_prefix_link_bytes == spared
    assert shared.shared_prefix_tokens == (len(rows) - 1) * len(BEGINNING)


def told(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("weights", [Shares(), Shares(0.5, 0, 0.5)])
def test_where_the_device_has_no_room_for_a_prefix_it_is_read_for_each_row_and_one_notice_says_so(
    model_file: Any, weights: Shares
) -> None:
    """Rows that score have their caches on the device for a visit, a prefix has its in all layers."""
    path, heard = model_file(DEEP), list[Event]()
    asked = [[*BEGINNING, 1], [*BEGINNING, 2, 3]]
    rows = [ScoredRow((*prompt, 5), len(prompt)) for prompt in asked]
    policy = ON_HOST.changed(weights=weights)
    request, apart = Request(2), policy.changed(share_prefixes=False)
    for run in (lambda engine: engine.generate(asked, request), lambda engine: engine.score(rows)):
        with load(path, policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
            shared = run(engine).stats
        with load(path, policy=apart, scratch_bytes=SCRATCH_BYTES) as engine:
            alone = run(engine)
        budget = alone.stats.peak_bytes["device"]
        assert budget < shared.peak_bytes["device"]
        heard.clear()
        with load(
            path, policy=policy, scratch_bytes=SCRATCH_BYTES, device_mem_gib=budget / GIB, on_event=heard.append
        ) as engine:
            found = run(engine)
        assert len([text for text in told(heard) if "the device has no room" in text]) == 1
        assert (shared.shared_prefix_tokens, found.stats.shared_prefix_tokens) == (len(BEGINNING), 0)
        assert found.stats.peak_bytes == alone.stats.peak_bytes
        if hasattr(found, "outputs"):
            assert found.outputs == alone.outputs


def test_a_request_that_can_never_fit_takes_no_prefix_from_the_others(model_file: Any) -> None:
    """It fails alone."""
    path, heard = model_file(SPEC), list[Event]()
    policy = ON_HOST.changed(cache=Shares())
    asked = [RowRequest([*BEGINNING[:CHUNK_TOKENS], number], Request(2, ignore_eos=True)) for number in range(3)]
    with load(path, policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        expected = list(engine.run(iter(asked)))
        needed = generation(GenerationJob(engine.session, asked, policy, all_at_once=True)).stats.peak_bytes["device"]
    with load(
        path, policy=policy, scratch_bytes=SCRATCH_BYTES, device_mem_gib=needed / GIB, on_event=heard.append
    ) as engine:
        job = GenerationJob(engine.session, [RowRequest([1] * (POSITIONS - 9), Request(8)), *asked], policy)
        found = list(results(job))
    assert [result.number for result in found if result.error is not None] == [0]
    assert [result.output for result in found if result.output] == [result.output for result in expected]
    assert job.stats.shared_prefix_tokens == 2 * CHUNK_TOKENS
    assert not told(heard)


def test_a_prefix_for_which_a_block_has_no_room_waits_for_the_next_block(model_file: Any) -> None:
    """The rows that are seen first share nothing; those that come later do."""
    policy = ON_HOST.changed(rows_per_group=2)
    first = [RowRequest([number] * 5, Request(3, ignore_eos=True)) for number in range(9)]
    later = [RowRequest([*BEGINNING, number], Request(3, ignore_eos=True)) for number in range(4)]
    with load(model_file(SPEC), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        job = GenerationJob(engine.session, iter([*first, *later]), policy)
        found = list(results(job))
        alone = list(engine.run([*first, *later], policy=policy.changed(share_prefixes=False)))
    assert job.stats.blocks == 2
    assert job.stats.shared_prefix_tokens == 3 * len(BEGINNING)
    assert sorted(found, key=lambda row: row.number) == sorted(alone, key=lambda row: row.number)


def test_what_is_left_of_a_stream_in_mid_prefix_leaves_nothing_in_the_next_job(model_file: Any, counting: Any) -> None:
    """A job is closed while others wait for a prefix that is read in chunks."""
    policy = ON_HOST.changed(prompt_chunk_tokens=7, rows_per_group=1, groups_per_block=3)
    asked = [[token] for token in (1, 2)] + [[*BEGINNING, token] for token in (3, 4)]
    with load(model_file(SPEC), policy=policy, backend=counting()) as engine:
        expected = engine.generate(asked, max_new_tokens=4, ignore_eos=True)
        held = {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()}
        with closing(engine.stream(asked, max_new_tokens=4, ignore_eos=True)) as tokens:
            next(tokens)
        assert {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()} == held
        again = engine.generate(asked, max_new_tokens=4, ignore_eos=True)
    assert again.outputs == expected.outputs
    assert again.stats.shared_prefix_tokens == expected.stats.shared_prefix_tokens == len(BEGINNING)


def test_the_longest_prefix_that_is_known_is_shared_and_the_last_token_is_a_rows_own() -> None:
    finder, tokens = PrefixFinder(), tuple(BEGINNING)
    rows = [Row(number, (*tokens[: 2 * CHUNK_TOKENS], number), 1) for number in range(2)]
    finder.find(rows)
    later = [Row(3, tokens, 1), Row(4, tokens[: 2 * CHUNK_TOKENS], 1), Row(5, tokens, 1, scored=CHUNK_TOKENS + 1)]
    finder.find([*rows, *later])
    assert [chunks_of(row) for row in later] == [2, 1, 1]
    assert later[0].prefix is rows[0].prefix is rows[1].prefix
    assert [row.seen for row in (*rows, *later)] == [2 * CHUNK_TOKENS] * 3 + [CHUNK_TOKENS] * 2
    assert later[1].prefix is later[2].prefix, "the two that it is too long for share a shorter one"


def test_rows_that_share_since_a_policy_was_chosen_are_planned_for(model_file: Any, monkeypatch: Any) -> None:
    """Of a stream some rows are looked at first, and more once it is known how many a block has: with those, the first
    ones begin alike."""
    monkeypatch.setattr("flexref.engine.generation.FIRST_LOOK", 2)
    begun = [BEGINNING[:CHUNK_TOKENS], BEGINNING[1 : CHUNK_TOKENS + 1]]
    asked = [RowRequest([*begun[number % 2], number], Request(2, ignore_eos=True)) for number in range(4)]
    with load(model_file(SPEC), policy=Policy(rows_per_group=4), scratch_bytes=SCRATCH_BYTES) as engine:
        job = GenerationJob(engine.session, iter(asked))
        found = list(results(job))
    assert [result.error for result in found] == [None] * 4
    assert (job.stats.blocks, job.stats.shared_prefix_tokens) == (1, 2 * CHUNK_TOKENS)
