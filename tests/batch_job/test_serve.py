"""Lines are answered as if each were alone, on one engine or on several that left off anywhere; it knows no format."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.serve import Serving
from flexref.block.rows import RowLengths
from flexref.engine.engine import Engine
from flexref.engine.generation import GenerationJob
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Output
from flexref.engine.session import Session
from flexref.errors import BatchError, CapacityError, FlexrefError, JobPaused
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.sampling.settings import SamplingSettings
from flexref.testing import strategies as own
from flexref.units import GIB

SPEC = ModelSpec("ending", 50, 48, 16, 16, 2, 2, 32, eos_token_ids=(7, 11, 20, 30, 41))
HOME = Policy(rows_per_group=1, overlap=False)
TIGHT = {"device_mem_gib": 219_000 / GIB}
"""Room for the small model and the cache of short rows, or for a long row whose cache is elsewhere."""


@dataclass(frozen=True)
class Some:
    """A line whose answer is what its rows have become, as `repr` has it."""

    number: int
    rows: tuple[RowRequest, ...]

    def answer(self, outputs: Sequence[Output]) -> LineAnswer:
        assert len(outputs) == len(self.rows)
        return LineAnswer(self.number, None, 0, False, repr(outputs).encode())

    def refused(self, error: FlexrefError) -> LineAnswer:
        return LineAnswer(self.number, None, 0, True, str(error).encode())


@st.composite
def lines(draw: st.DrawFn, most: int = 7) -> list[Some | LineAnswer]:
    found: list[Some | LineAnswer] = []
    for number in range(1, draw(st.integers(1, most)) + 1):
        if draw(st.integers(0, 7)) == 0:
            found.append(LineAnswer(number, None, 0, True, b"bad"))
            continue
        rows = []
        for choice in range(draw(st.sampled_from([1, 1, 2, 3]))):
            ids = draw(st.lists(st.integers(0, 49), min_size=1, max_size=9))
            temperature, logprobs = draw(st.sampled_from([0.0, 1.0])), draw(st.sampled_from([0, 0, 2]))
            fails = draw(st.integers(0, 9)) == 0
            request = Request(draw(st.integers(1, 7)), SamplingSettings(temperature, seed=3), logprobs=logprobs)
            rows.append(RowRequest([*ids, *[5] * 48 * fails], request, draw_number=(choice << 44) + number))
        found.append(Some(number, tuple(rows)))
    return found


def policies() -> st.SearchStrategy[Policy]:
    return own.policies(cache_schemes=("none",), prompt_chunk_tokens=None)


def taken_over(begun: dict[int, dict[int, tuple[int, ...]]], number: int) -> dict[int, tuple[int, ...]]:
    return begun.get(number, {})


def served_alone(file: Any, asked: Sequence[Some | LineAnswer]) -> dict[int, LineAnswer]:
    with load(file, policy=HOME, scratch_bytes=1 << 16) as engine:
        return {answer.number: answer for line in asked for answer in Serving(iter([line])).run(engine)}


@settings(max_examples=settings.default.max_examples // 3)  # each example opens several engines
@given(asked=lines(), policies=st.lists(policies(), min_size=1, max_size=4), data=st.data())
def test_lines_come_to_the_same_on_engines_that_leave_off_anywhere(
    model_file: Callable[..., Any], asked: list[Some | LineAnswer], policies: list[Policy], data: st.DataObject
) -> None:
    expected = served_alone(model_file(SPEC), asked)
    found = list[LineAnswer]()
    serving = Serving(iter(asked))
    for place, policy in enumerate(policies):
        last = place == len(policies) - 1
        passes_left = 1 << 20 if last else data.draw(st.integers(0, 5))

        def stop(engine: Engine, job: GenerationJob) -> None:
            nonlocal passes_left
            passes_left -= 1
            if passes_left < 0:
                raise JobPaused("enough")

        with load(model_file(SPEC), policy=policy, scratch_bytes=1 << 16) as engine:
            try:
                found += serving.run(engine, on_pass=stop)
            except JobPaused:
                assert not last
        if not last and data.draw(st.booleans()):  # another process takes over, with what this one has noted
            begun: dict[int, dict[int, tuple[int, ...]]] = {}
            for number, choice, tokens in serving.unfinished:
                begun.setdefault(number, {})[choice] = tokens
            known = {answer.number for answer in found}
            rest = [line for line in asked if line.number not in known]
            serving = Serving(iter(rest), partial(taken_over, begun))
    # What one engine's generator had when it was stopped is computed again, and is the same.
    assert {answer.number: answer for answer in found} == expected
    assert len(found) == len(expected)
    assert list(serving.unfinished) == []


def test_lines_that_failed_before_are_bounded_by_the_window_too(model_file: Callable[..., Any]) -> None:
    taken = 0

    def many() -> Iterator[LineAnswer]:
        nonlocal taken
        for number in range(1, 5001):
            taken = number
            yield LineAnswer(number, None, 0, True, b"bad")

    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine:
        found = []
        for answer in Serving(many()).run(engine):
            found.append(answer.number)
            assert taken - len(found) <= 2 * 256
    assert found == list(range(1, 5001))


def test_what_the_lines_raise_comes_after_the_answers_of_those_before(model_file: Callable[..., Any]) -> None:
    def broken() -> Iterator[Some]:
        yield Some(1, (RowRequest([3], Request(2)),))
        raise ValueError("torn")

    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine:
        answers = Serving(broken()).run(engine)
        assert next(answers).number == 1
        with pytest.raises(ValueError, match="torn"):
            next(answers)
        engine.session.gate.check()


def test_why_a_line_is_refused_does_not_depend_on_where_it_stood_or_what_was_free(
    model_file: Callable[..., Any],
) -> None:
    long = Some(9, (RowRequest([3] * 49, Request(2)),))
    short = Some(1, (RowRequest([3], Request(2)),))
    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine:
        alone = list(Serving(iter([long])).run(engine))
        beside = list(Serving(iter([short, long])).run(engine))
    assert alone[0] in beside
    assert b"prompt" not in alone[0].data.split(b":")[0]


def test_a_line_that_does_not_fit_beside_others_is_served_after_them(model_file: Callable[..., Any]) -> None:
    """Its length was not known when a policy was chosen: a long row that comes after many short ones."""
    row_on_host = Policy(rows_per_group=1, cache=Shares(0, 1), overlap=False)
    short = [Some(number, (RowRequest([3, number % 50], Request(2)),)) for number in range(1, 301)]
    long = Some(301, tuple(RowRequest([5] * 40, Request(7, ignore_eos=True)) for _ in range(2)))
    asked = [*short, long, Some(302, (RowRequest([4], Request(3)),))]
    expected = served_alone(model_file(SPEC), asked)
    settled = []

    def settle(session: Session, rows: Sequence[RowLengths]) -> Policy:
        settled.append(max(row.prompt_tokens for row in rows))
        return row_on_host if settled[-1] > 30 else Policy(rows_per_group=4, overlap=False)

    with load(model_file(SPEC), scratch_bytes=1 << 16, **TIGHT) as engine:
        engine.session.settle = settle
        serving = Serving(iter(asked))
        found = list(serving.run(engine))
        assert serving.has_set_aside
        assert 301 not in {answer.number for answer in found}
        found += serving.run(engine)
        assert not serving.has_set_aside
    assert {answer.number: answer for answer in found} == expected
    assert not any(answer.failed for answer in found)
    assert settled == [2, 40]


def test_a_line_that_fits_nowhere_is_refused(model_file: Callable[..., Any]) -> None:
    short = [Some(number, (RowRequest([3], Request(2)),)) for number in range(1, 301)]
    long = Some(301, (RowRequest([5] * 40, Request(7)),))
    with load(
        model_file(SPEC), policy=Policy(rows_per_group=4, overlap=False), scratch_bytes=1 << 16, **TIGHT
    ) as engine:
        serving = Serving(iter([*short, long]))
        found = [*serving.run(engine), *serving.run(engine)]
    assert [answer.number for answer in found if answer.failed] == [301]
    assert b"does not fit into the memory" in found[-1].data
    assert len(found) == 301


def short_lines(first: int, last: int) -> list[Some]:
    return [Some(number, (RowRequest([3, number % 50], Request(2)),)) for number in range(first, last + 1)]


def fails(number: int) -> LineAnswer:
    return LineAnswer(number, None, 0, True, b"bad")


def test_a_line_that_fits_nowhere_is_refused_also_where_no_other_is_left(model_file: Callable[..., Any]) -> None:
    """As after a kill: what becomes of a line does not depend on which are done already."""
    long = [Some(number, (RowRequest([5] * 40, Request(7)),)) for number in range(301, 601)]
    between = [Some(601, (RowRequest([5] * 10, Request(7)),))]

    def settle(session: Session, rows: Sequence[RowLengths]) -> Policy:
        if min(row.prompt_tokens for row in rows) > 35:
            raise CapacityError("device", "the cache", 2, 1, {})
        return Policy(rows_per_group=1, overlap=False)

    def served(asked: Sequence[Some]) -> dict[int, LineAnswer]:
        with load(model_file(SPEC), scratch_bytes=1 << 16, **TIGHT) as engine:
            engine.session.settle = settle
            serving, found = Serving(iter(asked)), list[LineAnswer]()
            found += serving.run(engine)
            while serving.has_set_aside:
                found += serving.run(engine)
            assert len(found) == len(asked)
            return {answer.number: answer for answer in found}

    undisturbed = served([*short_lines(1, 3), *long, *between])
    assert {number for number, answer in undisturbed.items() if answer.failed} == set(range(301, 601))
    assert served([*long, *between]) == {number: undisturbed[number] for number in range(301, 602)}


def test_where_not_even_the_shortest_row_fits_no_line_is_to_blame(model_file: Callable[..., Any]) -> None:
    tiny = {"device_mem_gib": 80_000 / GIB}
    with load(model_file(SPEC), policy=Policy(rows_per_group=4), scratch_bytes=1 << 16, **tiny) as engine:
        serving = Serving(iter(short_lines(1, 5)))
        with pytest.raises(CapacityError, match="device memory is too small"):
            list(serving.run(engine))
        assert not serving.is_running


def test_no_line_is_refused_for_memory_that_ran_out(model_file: Callable[..., Any]) -> None:
    long = Some(301, (RowRequest([5] * 40, Request(7)),))
    policy = Policy(rows_per_group=4, overlap=False)
    with load(model_file(SPEC), policy=policy, scratch_bytes=1 << 16, **TIGHT) as engine:
        serving = Serving(iter([*short_lines(1, 300), long]))
        assert len(list(serving.run(engine, may_refuse=False))) == 300
        with pytest.raises(BatchError, match="line 301 does not fit into what the job has left"):
            list(serving.run(engine, may_refuse=False))


@pytest.mark.parametrize("good_first", [0, 1])
def test_a_policy_is_chosen_for_rows_however_many_lines_failed_before_them(
    model_file: Callable[..., Any], good_first: int
) -> None:
    failed = [fails(number) for number in range(2, 602)]
    settled = list[int]()

    def settle(session: Session, rows: Sequence[RowLengths]) -> Policy:
        settled.append(len(rows))
        return HOME

    with load(model_file(SPEC), scratch_bytes=1 << 16) as engine:
        engine.session.settle = settle
        found = list(Serving(iter([*short_lines(1, good_first), *failed, *short_lines(602, 620)])).run(engine))
    assert len(found) == good_first + 619
    assert settled == [good_first + 19]


def test_a_line_that_failed_before_is_not_lost_with_the_engine(
    model_file: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken between two passes, and the second of them does not end."""
    breaks, linear = False, NumpyBackend.linear

    def taken() -> Iterator[Some | LineAnswer]:
        nonlocal breaks
        yield from short_lines(1, 279)
        yield fails(280)
        breaks = True
        yield from short_lines(281, 300)

    def broken(port: NumpyBackend, *given: Any, **named: Any) -> Any:
        nonlocal breaks
        if breaks:
            breaks = False
            raise CapacityError("device", "CUDA", 2, 1, {})
        return linear(port, *given, **named)

    monkeypatch.setattr(NumpyBackend, "linear", broken)
    serving, found = Serving(taken()), list[int]()
    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine, pytest.raises(CapacityError):
        found += [answer.number for answer in serving.run(engine)]
    with load(model_file(SPEC), policy=HOME, scratch_bytes=1 << 16) as engine:
        found += [answer.number for answer in serving.run(engine)]
    assert 280 in found
