"""The engine of a worker answers chunk after chunk as one engine would, however lines are cut; others are refused."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.cluster.engine_server import EngineOpening, EngineServer
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.prepared import JobSettings
from flexref.block.rows import RowLengths
from flexref.engine.session import Session
from flexref.errors import BatchError, CapacityError
from flexref.policy import Policy

LINES = [
    Line(1, b'{"prompt": "The king", "max_new_tokens": 4}'),
    Line(2, b'{"prompt": "Once", "max_new_tokens": 9, "temperature": 1.0}'),
    Line(3, b""),
    Line(4, b'{"prompt": "no such", "max_new_tokens": -1}'),
    Line(5, b'{"prompt": "The king and the", "max_new_tokens": 3, "temperature": 0.7, "seed": 8}'),
    Line(6, b'{"prompt": "It was", "max_new_tokens": 6, "temperature": 1.0, "top_k": 5}'),
]


OPENING = EngineOpening(JobSettings("demo", defaults=Defaults(seed=3)), as_json=True)


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    server = OPENING()
    yield server
    server.close()


def answered(server: EngineServer, lines: list[Line]) -> dict[int, LineAnswer]:
    return {answer.number: answer for answer in server.answers(lines, lambda: None)}


@given(st.permutations(LINES), st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=8, deadline=None)
def test_answers_depend_on_their_line_alone(server: EngineServer, lines: list[Line], sizes: list[int]) -> None:
    whole = answered(server, LINES)
    assert sorted(whole) == [1, 2, 4, 5, 6]
    found: dict[int, LineAnswer] = {}
    while lines:
        size = sizes[len(found) % len(sizes)]
        found |= answered(server, sorted(lines[:size], key=lambda line: line.number))
        lines = lines[size:]
    assert found == whole


def test_what_is_raised_after_a_pass_ends_a_chunk_and_the_engine_goes_on_with_the_next(server: EngineServer) -> None:
    passes: list[int] = []

    def on_pass() -> None:
        passes.append(len(passes))
        if len(passes) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(server.answers(LINES, on_pass))
    assert sorted(answered(server, LINES)) == [1, 2, 4, 5, 6]


def test_a_worker_with_another_model_or_other_arithmetic_is_not_taken(server: EngineServer) -> None:
    model, arithmetic = server.facts
    pickle.loads(pickle.dumps(replace(OPENING, expected=(model, arithmetic))))().close()
    with pytest.raises(BatchError, match="would not compute what the others do: the model's checksum"):
        replace(OPENING, expected=({**model, "checksum": "0" * 16}, arithmetic))()
    other = replace(OPENING, expected=(model, {**arithmetic, "processor": "abacus"}))
    with pytest.raises(BatchError, match="arithmetic, processor: the job was begun with abacus"):
        other()
    replace(other, accept_arithmetic=True)().close()


def test_no_line_is_failed_by_a_worker_whose_memory_ran_out() -> None:
    def settle(session: Session, rows: Sequence[RowLengths]) -> Policy:
        if max(row.prompt_tokens for row in rows) > 1:
            raise CapacityError("device", "the cache", 2, 1, {})
        return Policy()

    line, server = Line(1, b'{"prompt": [5, 6, 7]}'), OPENING()
    try:
        server._engine.session.settle = settle
        assert [answer.failed for answer in server.answers([line], lambda: None)] == [True]
        server._engines.have_less = True
        with pytest.raises(BatchError, match="line 1 does not fit into what the job has left of its memory"):
            list(server.answers([line], lambda: None))
    finally:
        server.close()
