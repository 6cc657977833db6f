"""A stream of requests, each with its own limits, sampling and stops: a row has what it has alone, and fails alone."""

import weakref
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.admission import WINDOWS
from flexref.engine.engine import Engine
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import RowResult
from flexref.engine.session import always
from flexref.errors import CapacityError, EngineError, PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.sampling.settings import SamplingSettings
from flexref.testing import strategies as own
from flexref.units import GIB, Tier

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
ENDING = ModelSpec("ending", 50, 48, 16, 16, 2, 2, 32, eos_token_ids=(7, 11, 20, 30, 41))
HOME = Policy(rows_per_group=1, overlap=False)
UNSERVABLE = RowRequest([], Request(1))
"""It fails alone, and the next request has the next number."""

KEPT = {"weights", "weight slots", "weight staging", "scratch"}
"""What an engine holds between its jobs."""

SAMPLING = st.builds(
    SamplingSettings,
    st.sampled_from([0.0, 0.0, 1.0]),
    st.sampled_from([0, 5]),
    st.sampled_from([1.0, 0.7]),
    st.integers(0, 9),
)


@st.composite
def requests(draw: st.DrawFn, most: int = 9) -> list[RowRequest]:
    """Rows of every kind; some cannot be served."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        ids = draw(st.lists(st.integers(0, 49), min_size=1, max_size=12))
        new = draw(st.integers(1, 8))
        request = Request(
            new, draw(SAMPLING), ignore_eos=draw(st.booleans()), logprobs=draw(st.sampled_from([0, 0, 3]))
        )
        fails = draw(st.integers(0, 7)) == 0
        found.append(RowRequest(ids + [5] * 48 * fails, request))
    return found


def policies() -> st.SearchStrategy[Policy]:
    return own.policies(cache_schemes=("none",), prompt_chunk_tokens=None) | st.builds(
        lambda policy, chunk: policy.changed(prompt_chunk_tokens=chunk),
        own.policies(cache_schemes=("none",)),
        st.integers(1, 6),
    )


def alone(engine: Engine, number: int, request: RowRequest) -> RowResult:
    """What the request gets if nobody else is there."""
    return list(engine.run([*[UNSERVABLE] * number, request], policy=HOME))[-1]


def same(found: RowResult, expected: RowResult) -> None:
    assert found.number == expected.number
    assert found.output == expected.output
    assert type(found.error) is type(expected.error)
    assert str(found.error) == str(expected.error)


def nothing_is_left(engine: Engine, port: Any) -> None:
    """No lane is at work, no memory is held, and the engine has no job."""
    arenas = engine.session.arenas
    for tier, arena in arenas.items():
        assert arena.holders.keys() <= KEPT, f"{tier} still has {arena.holders}"
    assert port.live["device"] == arenas[Tier.DEVICE].held_bytes - arenas[Tier.DEVICE].holders["scratch"]
    assert port.live["host"] == arenas[Tier.HOST].held_bytes
    assert not engine.session.mover.abandoned
    engine.session.gate.check()


@settings(max_examples=settings.default.max_examples // 2)  # each example is a job and one for each row
@given(asked=requests(), policy=policies())
def test_every_row_of_a_stream_gets_what_it_gets_alone(
    model_file: Any, asked: list[RowRequest], policy: Policy
) -> None:
    with load(model_file(ENDING), policy=policy, scratch_bytes=1 << 16) as engine:
        results = list(engine.run(iter(asked)))
        assert sorted(result.number for result in results) == list(range(len(asked)))
        for result in results:
            request = asked[result.number]
            same(result, alone(engine, result.number, request))
            if result.output is not None and (request.request.sampling.greedy or result.number == 0):
                generated = engine.generate([request.prompt], request.request, policy=HOME).outputs
                assert generated == [result.output]


def test_stop_texts_are_each_rows_own() -> None:
    with load("demo", policy=Policy(rows_per_group=2), scratch_bytes=1 << 16) as engine:
        prompts = ["The king", "In the beginning", "And he said unto", "The", "Now the sons of"]
        (whole, *_) = engine.generate(prompts[:1], max_new_tokens=12).outputs
        assert whole.text is not None
        asked = [
            RowRequest(prompt, Request(4 + 3 * number, stops=(whole.text[5:8],) if number % 2 == 0 else (" ",)))
            for number, prompt in enumerate(prompts)
        ]
        results = sorted(engine.run(iter(asked)), key=lambda result: result.number)
        expected = [engine.generate([each.prompt], each.request, policy=HOME).outputs[0] for each in asked]
    assert [result.output for result in results] == expected
    assert {result.output.finish_reason for result in results if result.output is not None} == {"stop", "length"}


@settings(max_examples=settings.default.max_examples // 3)  # each example is several jobs
@given(asked=requests(), policies=st.tuples(policies(), policies()), data=st.data())
def test_a_row_begun_again_from_its_tokens_goes_on_as_if_it_had_not_been_interrupted(
    model_file: Any, asked: list[RowRequest], policies: tuple[Policy, Policy], data: st.DataObject
) -> None:
    this, other = policies
    with load(model_file(ENDING), policy=this, scratch_bytes=1 << 16) as engine:
        whole = {result.number: result.output for result in engine.run(iter(asked))}
        again, kept = [], {}
        for number, request in enumerate(asked):
            output = whole[number]
            tokens = [] if output is None else output.token_ids
            kept[number] = data.draw(st.integers(0, max(0, len(tokens) - 1)), label=f"tokens of row {number}")
            again.append(RowRequest(request.prompt, request.request, tuple(tokens[: kept[number]])))
        for result in engine.run(iter(again), policy=other):
            output, expected = result.output, whole[result.number]
            if expected is None:
                assert isinstance(result.error, PromptError)
                continue
            assert output is not None
            assert (output.token_ids, output.finish_reason) == (expected.token_ids, expected.finish_reason)
            if expected.logprobs is not None:
                assert output.logprobs == expected.logprobs[kept[result.number] :]


@pytest.mark.parametrize(
    ("generated", "limit", "complaint"),
    [
        ((5, 6), 2, "prompt 1: 2 tokens are generated already, of 2"),
        ((5, 7), 6, "prompt 1: the tokens that are generated already end the row"),
    ],
)
def test_a_row_that_has_ended_is_not_begun_again(
    model_file: Any, generated: tuple[int, ...], limit: int, complaint: str
) -> None:
    with load(model_file(ENDING), policy=HOME, scratch_bytes=1 << 16) as engine:
        (result,) = engine.run([RowRequest([1, 2], Request(limit), generated)])
    assert (result.output, str(result.error)) == (None, complaint)


@pytest.mark.parametrize("wrong", [5, [1, 2], "The king", None])
def test_what_is_no_request_fails_alone(model_file: Any, wrong: Any) -> None:
    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine:
        first, second = engine.run([wrong, RowRequest([1, 2], Request(2, ignore_eos=True))])
    assert (first.number, second.number) == (0, 1)
    assert str(first.error) == f"request 1 must be a RowRequest, found {wrong!r}"
    assert second.output is not None


# Memory


@pytest.mark.parametrize("large", [1, 3, 20])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rows_per_group", [1, 3])
def test_a_request_that_can_never_fit_its_policy_fails_alone(
    model_file: Any, large: int, first: bool, rows_per_group: int
) -> None:
    """However many of them come before others that fit: more than are looked at ahead."""
    policy = Policy(rows_per_group=rows_per_group)
    small, huge = RowRequest([1, 2, 3], Request(3, ignore_eos=True)), RowRequest([1] * 40, Request(8, ignore_eos=True))
    with load(model_file(SPEC), policy=policy, scratch_bytes=1 << 16) as engine:
        budget = engine.generate([[1, 2, 3]], small.request).stats.peak_bytes["device"]
    asked = [huge] * large + [small] * 3 if first else [small] * 3 + [huge] * large + [small] * 3
    with load(model_file(SPEC), policy=policy, scratch_bytes=1 << 16, device_mem_gib=budget / GIB) as engine:
        results = {result.number: result for result in engine.run(iter(asked), policy=policy)}
        assert sorted(results) == list(range(len(asked)))
        for number, request in enumerate(asked):
            assert isinstance(results[number].error, CapacityError) == (request is huge)
        tokens = {tuple(result.output.token_ids) for result in results.values() if result.output is not None}
        assert len(tokens) == 1
        engine.generate([[1, 2, 3]], small.request)


# The iterator


class InputFailedError(Exception):
    """What an iterator of requests raises here."""


@settings(max_examples=settings.default.max_examples // 3)  # each example is several jobs
@given(asked=requests(), policy=policies(), data=st.data())
def test_an_iterator_that_raises_ends_the_job_after_the_rows_that_it_had_given(
    model_file: Any, counting: Any, asked: list[RowRequest], policy: Policy, data: st.DataObject
) -> None:
    until = data.draw(st.integers(0, len(asked)))

    def failing() -> Iterator[RowRequest]:
        yield from asked[:until]
        raise InputFailedError

    results, port = list[RowResult](), counting()
    with load(model_file(SPEC), policy=policy, backend=port) as engine:
        stream = engine.run(failing())
        for _ in asked[:until]:
            results.append(next(stream))
        with pytest.raises(InputFailedError):
            next(stream)
        nothing_is_left(engine, port)
        expected = list(engine.run(iter(asked[:until])))
    assert sorted(result.number for result in results) == list(range(until))
    for mine, other in zip(results, expected, strict=True):
        same(mine, other)


def test_what_cannot_be_iterated_over_is_refused(model_file: Any) -> None:
    with load(model_file(SPEC), policy=HOME) as engine, pytest.raises(TypeError, match="not iterable"):
        list(engine.run(5))  # type: ignore[arg-type]


class Text(str):
    """A prompt of which it can be seen whether anybody has it still."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize(("given", "in_all"), [(True, 40), (False, 90)])
def test_nothing_of_the_input_is_held_beyond_the_window(
    given: bool, in_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the iterator asked for more than the window has, and a row is forgotten when its result was taken."""
    monkeypatch.setattr("flexref.engine.generation.FIRST_LOOK", first_look := 50)
    policy = Policy(rows_per_group=2, groups_per_block=2)
    places, given_out = policy.rows_per_block, 0
    # The window, the rows in their places, and those that have ended in the pass whose results are being taken.
    bound = (WINDOWS + 2) * places
    alive = weakref.WeakSet[Any]()

    def stream() -> Iterator[RowRequest]:
        nonlocal given_out
        for number in range(in_all):
            given_out += 1
            text = Text(f"The king {number}")
            alive.add(text)
            yield RowRequest(text, Request(1 + number % 3, ignore_eos=True))
            del text

    with load("demo", policy=policy, scratch_bytes=1 << 16) as engine:
        ended = most = 0
        for result in engine.run(stream(), policy=policy if given else None):
            ended += 1
            most = max(most, len(alive))
            if given or given_out > first_look:  # so far it looks before there is a policy
                assert given_out - ended <= bound
                assert len(alive) <= bound
            del result
    assert (ended, given_out) == (in_all, in_all)
    assert most >= WINDOWS * places
    assert not alive


# The caller


@settings(max_examples=settings.default.max_examples // 4)  # each example is five jobs
@given(asked=requests(), policy=policies(), data=st.data())
def test_a_caller_who_stops_listening_leaves_no_lane_and_no_memory(
    model_file: Any, counting: Any, asked: list[RowRequest], policy: Policy, data: st.DataObject
) -> None:
    port = counting()
    with load(model_file(SPEC), policy=policy, backend=port) as engine:
        whole = list(engine.run(iter(asked)))
        for _ in range(3):
            results: Generator[RowResult, None, None] = engine.run(iter(asked))  # type: ignore[assignment]
            for expected in whole[: data.draw(st.integers(0, len(whole)))]:
                same(next(results), expected)
            how = data.draw(st.sampled_from(["close", "throw", "drop"]))
            if how == "close":
                results.close()
            elif how == "throw":
                with pytest.raises(ZeroDivisionError):
                    results.throw(ZeroDivisionError)
            del results
            nothing_is_left(engine, port)
        for found, expected in zip(engine.run(iter(asked)), whole, strict=True):
            same(found, expected)
    assert not +port.live


def test_an_engine_has_one_stream_at_a_time(model_file: Any) -> None:
    request = RowRequest([1, 2, 3], Request(2, ignore_eos=True))
    with load(model_file(SPEC), policy=HOME) as engine:
        stream = engine.run([request] * 3)
        first = next(stream)
        with pytest.raises(EngineError, match="one job at a time"):
            next(engine.run([request]))
        assert [first.number, *(result.number for result in stream)] == [0, 1, 2]


# Policies


def test_a_stream_without_a_policy_has_one_chosen_for_its_first_rows(model_file: Any) -> None:
    request = RowRequest([1, 2, 3], Request(2, ignore_eos=True))
    with load(model_file(SPEC), scratch_bytes=1 << 16) as engine:
        results = list(engine.run([request] * 9))
        assert len({tuple(result.output.token_ids) for result in results if result.output is not None}) == 1
        assert len(results) == 9
        engine.session.settle = always(HOME)
        assert list(engine.run([])) == []


@settings(max_examples=settings.default.max_examples // 2)  # each example is a job and one for each row
@given(asked=requests(), policy=policies(), numbers=st.lists(st.integers(0, 8), min_size=9, max_size=9))
def test_a_row_draws_by_the_number_that_it_is_given_wherever_it_stands(
    model_file: Any, asked: list[RowRequest], policy: Policy, numbers: list[int]
) -> None:
    with load(model_file(ENDING), policy=policy, scratch_bytes=1 << 16) as engine:
        drawn = [replace(each, draw_number=number) for each, number in zip(asked, numbers, strict=False)]
        results = list(engine.run(iter(drawn)))
        for result in results:
            expected = alone(engine, numbers[result.number], asked[result.number])
            assert result.output == expected.output


@pytest.mark.parametrize("number", [-1, 1 << 63, True, "1"])
def test_a_number_that_cannot_be_drawn_by_fails_alone(model_file: Any, number: Any) -> None:
    with load(model_file(ENDING), policy=HOME, scratch_bytes=1 << 16) as engine:
        bad, good = engine.run([RowRequest([1], Request(1), draw_number=number), RowRequest([1], Request(1))])
        assert isinstance(bad.error, PromptError)
        assert "draw_number" in str(bad.error)
        assert good.output is not None
