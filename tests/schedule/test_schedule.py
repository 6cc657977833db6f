"""The schedule's order against its own list of hazards, and against a model of slots that knows neither."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.schedule.hazards import first_violation, requirements
from flexref.schedule.zigzag import (
    Beat,
    Computation,
    Hop,
    Movement,
    Operation,
    Shape,
    Visit,
    beats,
    zigzag,
)
from flexref.units import Kind

SHAPES = st.builds(Shape, st.integers(1, 4), st.integers(3, 6), st.integers(1, 4), st.just(2))


def test_groups_are_innermost_so_that_a_stage_is_fetched_once_per_pass() -> None:
    order = list(zigzag(passes=1, stages=2, groups=2))
    assert order == [Visit(0, 0, 0), Visit(0, 0, 1), Visit(0, 1, 0), Visit(0, 1, 1)]


@given(SHAPES, st.booleans())
def test_every_operation_starts_once_and_after_all_that_it_requires(shape: Shape, overlap: bool) -> None:
    order = list(beats(shape, overlap=overlap))
    assert first_violation(order, shape) is None
    counts = Counter(operation for beat in order for operation in beat.operations())
    assert set(counts.values()) == {1}
    visits = shape.passes * shape.stages * shape.groups
    weights = 2 * shape.passes * shape.stages
    assert len(counts) == weights + visits * (1 + 4 * 2)


@given(SHAPES, st.sets(st.sampled_from(Kind)), st.booleans())
def test_kinds_that_never_move_take_nothing_from_the_order_of_the_others(
    shape: Shape, kinds: set[Kind], overlap: bool
) -> None:
    fewer = replace(shape, kinds=frozenset(kinds))
    left = [operation for beat in beats(fewer, overlap=overlap) for operation in beat.operations()]
    whole = [operation for beat in beats(shape, overlap=overlap) for operation in beat.operations()]
    assert left == [operation for operation in whole if isinstance(operation, Computation) or operation.kind in kinds]
    assert first_violation(beats(fewer, overlap=overlap), fewer) is None
    for operation in left:
        needed = set(requirements(operation, shape))
        assert set(requirements(operation, fewer)) == needed & set(left)
        # What one kind's moves wait for is of that kind, or computed: so nothing is lost with another kind.
        assert isinstance(operation, Computation) or all(
            isinstance(each, Computation) or each.kind is operation.kind for each in needed
        )


@given(SHAPES)
def test_serial_order_needs_one_slot_only(shape: Shape) -> None:
    single = Shape(shape.passes, shape.stages, shape.groups, slots=1)
    assert first_violation(beats(single, overlap=False), single) is None


@given(SHAPES)
def test_overlap_computes_the_same_visits_in_the_same_order(shape: Shape) -> None:
    def computed(overlap: bool) -> list[Visit]:
        return [beat.computation.visit for beat in beats(shape, overlap=overlap) if beat.computation]

    assert computed(True) == computed(False) == list(zigzag(shape.passes, shape.stages, shape.groups))


@given(SHAPES, st.booleans())
def test_no_slot_is_refilled_while_what_it_holds_is_still_to_be_used(shape: Shape, overlap: bool) -> None:
    holds: dict[int, Operation] = {}
    computed: set[Visit] = set()
    for beat in beats(shape, overlap=overlap):
        for operation in beat.operations():
            if isinstance(operation, Movement) and (operation.hop, operation.kind) == (Hop.LOAD, Kind.WEIGHTS):
                slot = shape.weights_slot(operation.visit)
                if slot in holds:
                    old = holds[slot].visit
                    assert all(Visit(old.pass_number, old.stage, group) in computed for group in range(shape.groups))
                holds[slot] = operation
            elif isinstance(operation, Computation):
                expected = Visit(operation.visit.pass_number, operation.visit.stage, 0)
                assert holds[shape.weights_slot(operation.visit)].visit == expected
                computed.add(operation.visit)


@given(SHAPES)
def test_weights_arrive_one_stage_ahead_of_their_use(shape: Shape) -> None:
    started: set[Operation] = set()
    for beat in beats(shape, overlap=True):
        if beat.computation is not None:
            following = shape.first_visit(shape.stage_number(beat.computation.visit) + 1)
            if following is not None:
                assert Movement(Hop.LOAD, Kind.WEIGHTS, following) in started | set(beat.ahead)
        started.update(beat.operations())


@given(SHAPES, st.data())
def test_a_beat_moved_before_its_time_is_found(shape: Shape, data: st.DataObject) -> None:
    order = list(beats(shape, overlap=True))
    operations = [operation for beat in order for operation in beat.operations()]
    chosen = data.draw(st.sampled_from([operation for operation in operations if list(requirements(operation, shape))]))
    early = [chosen, *(operation for operation in operations if operation != chosen)]
    assert first_violation([Beat((operation,), None, ()) for operation in early], shape) is not None


@pytest.mark.parametrize("slots", [1, 2])
def test_every_number_names_its_visit(slots: int) -> None:
    shape = Shape(2, 3, 2, slots)
    visits = list(zigzag(2, 3, 2))
    assert [shape.visit(number) for number in range(len(visits))] == visits
    assert shape.visit(-1) is None
    assert shape.visit(len(visits)) is None
