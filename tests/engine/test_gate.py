"""One job at a time on an engine, none on a closed one: whoever is refused hears so in one clear line."""

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import EngineError
from flexref.loading import load
from flexref.policy import Policy, Shares

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
POLICY = Policy(Shares(0, 1, 0), Shares(0, 1, 0), Shares(0, 1, 0), rows_per_group=2)
OTHER = POLICY.changed(weights=Shares(0.5, 0.5, 0))
PROMPTS = [[1, 2, 3, 4, 5, 6]] * 3
REQUEST = Request(6, ignore_eos=True)

CALLS: tuple[Callable[[Engine], Any], ...] = (
    lambda engine: engine.generate([[7]], REQUEST),
    lambda engine: next(engine.stream([[7]], REQUEST)),
    lambda engine: engine.score([ScoredRow((1, 2, 3))]),
    lambda engine: engine.session.weights_for(OTHER),
)
"""All that needs an engine for itself."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    write_model(tmp_path / "model.h5", SPEC)
    with load(tmp_path / "model.h5", policy=POLICY) as made:
        yield made


def tokens(engine: Engine) -> list[tuple[int, int]]:
    return [(token.row, token.token_id) for token in engine.stream(PROMPTS, REQUEST)]


def refused(engine: Engine, why: str) -> None:
    for call in CALLS:
        with pytest.raises(EngineError, match=why) as error:
            call(engine)
        assert "\n" not in str(error.value)


def test_a_second_job_is_refused_and_does_not_disturb_the_first(engine: Engine) -> None:
    expected = tokens(engine)
    found = []
    for token in engine.stream(PROMPTS, REQUEST):
        if len(found) % 5 == 0:
            refused(engine, "at work")
        found.append((token.row, token.token_id))
    assert found == expected
    assert tokens(engine) == expected


def test_a_stream_that_has_not_begun_has_nothing(engine: Engine) -> None:
    waiting = engine.stream(PROMPTS, REQUEST)
    expected = tokens(engine)
    assert [(token.row, token.token_id) for token in waiting] == expected


def test_a_job_inside_another_s_callback_is_refused(engine: Engine) -> None:
    def inside(*_: Any) -> None:
        refused(engine, "at work")
        with pytest.raises(EngineError, match="at work"):
            engine.close()

    engine.generate(PROMPTS, REQUEST, on_logits=inside)
    assert tokens(engine)


def test_a_job_of_another_thread_is_refused(engine: Engine) -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            engine.generate(PROMPTS, REQUEST)
        except EngineError as error:
            found.append(error)

    next(stream := engine.stream(PROMPTS, REQUEST))
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    stream.close()  # type: ignore[attr-defined]
    assert len(found) == 1


@pytest.mark.parametrize("end", ["closed", "dropped", "failed"])
def test_a_stream_that_its_user_leaves_frees_the_engine(engine: Engine, end: str) -> None:
    expected = tokens(engine)
    base = {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()}
    stream = engine.stream(PROMPTS, REQUEST)
    for _ in range(4):
        next(stream)
    if end == "closed":
        stream.close()  # type: ignore[attr-defined]
    elif end == "failed":
        with pytest.raises(ZeroDivisionError):
            stream.throw(ZeroDivisionError)  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()} == base
    assert tokens(engine) == expected


def test_a_closed_engine_says_so_at_every_call_and_closes_again(engine: Engine) -> None:
    stream = engine.stream(PROMPTS, REQUEST)
    next(stream)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(stream)
    assert next(stream, None) is None
    engine.close()
    refused(engine, "closed")
    assert all(not arena.holders.keys() - {"scratch"} for arena in engine.session.arenas.values())


def test_closing_while_a_stream_is_suspended_gives_its_memory_back(engine: Engine) -> None:
    stream = engine.stream(PROMPTS, REQUEST)
    next(stream)
    engine.close()
    assert all(not arena.holders.keys() - {"scratch"} for arena in engine.session.arenas.values())
    del stream


def test_an_engine_whose_job_waits_for_its_lanes_is_not_broken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread reads a tensor meanwhile, and hears that the engine is at work."""
    mark, shapes = engine.backend.mark, list[tuple[int, ...]]()

    def look() -> None:
        shapes.append(engine.tensor("layers/000/attention_qkv/bias").shape)
        refused(engine, "at work")

    def marked() -> Any:
        if engine.session.mover.abandoned:  # as it is for as long as it waits
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        return mark()

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "mark", marked)
        assert tokens(engine)
    assert set(shapes) == {(3 * SPEC.width,)}
