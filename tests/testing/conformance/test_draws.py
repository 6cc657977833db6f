"""What clauses draw can be kept and repeated: any values, of every clause of the contract; hostile ones are refused."""

import json
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flexref.backend.protocol import LANES
from flexref.testing.conformance.draws import CaseError, DrawnValues, DrawsEnd, RecordedDraws, RepeatedDraws
from flexref.testing.contract import CONTRACT, RECORDINGS, Clause, clause_name
from flexref.testing.strategies import arrays, layouts, seeds

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(LANES),
    layouts("float16"),
    st.sampled_from(("float32", "float16", "uint8")).flatmap(lambda dtype: arrays((2, 3), dtype, ("normal",))),
)
values = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner)), max_leaves=5
) | st.sets(st.integers(0, 9))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or repr(one) == repr(other) == "nan")


@given(st.lists(values, max_size=6))
def test_what_was_drawn_comes_back_in_its_order_through_json(drawn: list[Any]) -> None:
    kept = DrawnValues()
    for value in drawn:
        kept.add(value)
    again = RepeatedDraws(DrawnValues(json.loads(json.dumps(kept.values)), kept.arrays))
    assert same([again.draw(seeds) for _ in drawn], drawn)
    with pytest.raises(DrawsEnd):
        again.draw(seeds)


@pytest.mark.parametrize("clause", [each for each in CONTRACT if each not in RECORDINGS], ids=clause_name)
def test_the_draws_of_every_clause_can_be_kept_and_repeated(clause: Clause) -> None:
    """And a clause that is given them again draws neither more nor less."""
    backend = NumpyBackend()

    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def twice(data: st.DataObject) -> None:
        recorded: Any = RecordedDraws(data)
        clause(backend, recorded)
        repeated: Any = RepeatedDraws(DrawnValues(json.loads(json.dumps(recorded.drawn.values)), recorded.drawn.arrays))
        clause(backend, repeated)
        with pytest.raises(DrawsEnd):
            repeated.draw(None)

    twice()
    backend.close()


@pytest.mark.parametrize(
    "hostile",
    [
        2**32,
        -(2**40),
        "x" * 300,
        1.5,
        [1],
        {},
        {"tuple": 1},
        {"tuple": [0] * 70000},
        {"array": 1},
        {"array": -1},
        {"array": True},
        {"float": 3},
        {"float": "9" * 99999},
        {"lane": "sideways"},
        {"layout": {}},
        {"layout": {"heads": 10**9, "head_width": 8, "dtype": "float32", "scheme": "none", "group_size": 4}},
        {"layout": {"heads": 1, "head_width": 8, "dtype": "object", "scheme": "none", "group_size": 4}},
        {"set": [{"list": []}]},
        {"__class__": "os.system"},
        {
            "list": [
                {
                    "list": [
                        {"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": []}]}]}]}]}]}]}]}
                    ]
                }
            ]
        },
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_hostile_draw_is_refused_in_a_line(hostile: Any) -> None:
    with pytest.raises(CaseError) as error:
        DrawnValues([hostile], [np.zeros(1)]).decoded(0)
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_only_a_seed_may_be_large() -> None:
    drawn = DrawnValues()
    for value in (2**32 - 1, 2**32 - 1, (1, [2**20])):
        drawn.add(value)
    draws = RepeatedDraws(drawn)
    assert draws.draw(seeds) == 2**32 - 1
    for _ in range(2):
        with pytest.raises(CaseError, match="more than any clause draws"):
            draws.draw(st.integers())


def test_a_clause_that_draws_an_object_is_told_to_draw_its_number() -> None:
    with pytest.raises(TypeError, match="draw its number"):
        DrawnValues().add(object())
