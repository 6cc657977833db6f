"""The schedule's order against its own list of hazards, and against a model of slots that knows neither."""

from collections import Counter
from dataclasses import replace
from typing import TypeGuard

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


@st.composite
def shapes_with_disk(draw: st.DrawFn) -> Shape:
    """Shapes of which some stages are read from disk, into more or fewer places than there are such stages."""
    shape = draw(SHAPES)
    fetched = draw(st.none() | st.sets(st.integers(0, shape.stages - 1)).map(lambda found: tuple(sorted(found))))
    return replace(shape, fetched=fetched, fetch_slots=draw(st.none() | st.integers(1, shape.stages + 2)))


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


@given(shapes_with_disk(), st.booleans())
def test_stages_are_read_from_disk_once_a_pass_if_they_have_weights_there(shape: Shape, overlap: bool) -> None:
    order = list(beats(shape, overlap=overlap))
    assert first_violation(order, shape) is None
    reads = [operation.visit for beat in order for operation in beat.operations() if _is_read(operation)]
    stages = range(shape.stages) if shape.fetched is None else shape.fetched
    assert reads == [Visit(number, stage, 0) for number in range(shape.passes or 0) for stage in stages]
    assert [shape.fetches_before(shape.stage_number(visit)) for visit in reads] == list(range(len(reads)))
    assert [shape.fetched_visit(number) for number in range(len(reads))] == reads
    assert shape.fetched_visit(len(reads)) is None


@given(shapes_with_disk())
def test_no_place_on_the_host_is_read_into_before_what_it_holds_is_loaded(shape: Shape) -> None:
    holds: dict[int, Visit] = {}
    for beat in beats(shape, overlap=True):
        for operation in beat.operations():
            if _is_read(operation):
                assert shape.fetch_slot(operation.visit) not in holds
                holds[shape.fetch_slot(operation.visit)] = operation.visit
            elif isinstance(operation, Movement) and (operation.hop, operation.kind) == (Hop.LOAD, Kind.WEIGHTS):
                held = holds.pop(shape.fetch_slot(operation.visit), None) if shape.is_fetched(operation.visit) else None
                assert held == (operation.visit if shape.is_fetched(operation.visit) else None)


@given(shapes_with_disk(), st.integers(0, 4))
def test_the_disk_is_ahead_by_as_many_stages_as_there_are_places_also_over_the_end_of_a_pass(
    shape: Shape, last: int
) -> None:
    asked: list[int] = []

    def goes_on(number: int) -> bool:
        asked.append(number)
        return number <= last

    reads: list[Visit] = []
    for beat in beats(shape, overlap=True, goes_on=goes_on):
        if beat.computation is not None and beat.computation.visit.pass_number > last:
            break
        reads += [operation.visit for operation in beat.ahead if _is_read(operation)]
        if beat.computation is None:
            assert len(reads) <= max(1, shape.fetches_ahead)
            continue
        visit = beat.computation.visit
        assert all(number == visit.pass_number + 1 for number in asked), "a pass is asked for in the one before it"
        asked.clear()
        stage_number, passes = shape.stage_number(visit), min(visit.pass_number + 2, last + 1, shape.passes or 0)
        most = shape.fetches_before(passes * shape.stages)
        assert len(reads) == min(most, shape.fetches_before(stage_number + 1) + shape.fetches_ahead)
    assert all(visit.pass_number <= last for visit in reads), "nothing is read for a pass that does not come"


def _is_read(operation: Operation) -> TypeGuard[Movement]:
    return isinstance(operation, Movement) and (operation.hop, operation.kind) == (Hop.FETCH, Kind.WEIGHTS)


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
