"""What each operation has to wait for. Stated only here: the executor waits by it, tests check schedules by it.

An operation needs its data, and it needs its target to be free. In this table

- `before` is the visit (for weights, the stage) that used the same slot last, `slots` visits (stages) earlier; for a
  fetch of weights, the stage that had the same place on the host, `fetch_slots` earlier among those that are fetched;
- `earlier` is the same stage and group one pass earlier;
- `stage` is the same group in the previous stage. For the first stage of a pass it is the computation, in the last
  stage of the pass before, that chose the group's tokens.

| operation | needs these for its data | needs these for its target |
| --- | --- | --- |
| fetch weights | the file | load of `before`: it empties the staging slot on the host |
| load weights | its fetch, if it is fetched | compute of the last group of `before`, which reads the slot |
| fetch cache | spill of `earlier` | load, compute and spill of `before`: attention on the host works in staging |
| load cache | its fetch; store of `earlier` | compute and store of `before`, in and from the slot |
| fetch activations | spill of `stage` | load of `before` |
| load activations | its fetch; store of `stage` | compute and store of `before` |
| compute | load of the stage's weights; fetch and load of cache and activations | the slot is its own |
| store | its compute | spill of `before`: it empties the staging slot on the host |
| spill | its store; its compute, where attention on the host appends to staging | its home is its own |
"""

from collections.abc import Iterable, Iterator

from flexref.schedule.zigzag import Beat, Computation, Hop, Movement, Operation, Shape, Visit
from flexref.units import Kind


def requirements(operation: Operation, shape: Shape) -> Iterator[Operation]:
    """The operations that must be complete before `operation` may start.

    Movements of one kind of data wait only for each other and for computations, so a kind that never moves can be left
    out.
    """
    for needed in _requirements(operation, shape):
        if isinstance(needed, Computation) or needed.kind in shape.kinds:
            yield needed


def _requirements(operation: Operation, shape: Shape) -> Iterator[Operation]:
    if isinstance(operation, Computation):
        yield from _computation(operation, shape)
    elif operation.kind is Kind.WEIGHTS:
        yield from _weights(operation, shape)
    elif operation.hop in (Hop.STORE, Hop.SPILL):
        yield from _results(operation, shape)
    elif operation.kind is Kind.CACHE:
        yield from _cache(operation, shape)
    else:
        yield from _activations(operation, shape)


def _computation(operation: Computation, shape: Shape) -> Iterator[Operation]:
    visit, kinds = operation.visit, shape.kinds
    if Kind.WEIGHTS in kinds:
        yield Movement(Hop.LOAD, Kind.WEIGHTS, Visit(visit.pass_number, visit.stage, 0))
    for kind in (Kind.CACHE, Kind.ACTIVATIONS):
        if kind in kinds:
            yield Movement(Hop.FETCH, kind, visit)  # attention on the host reads what was fetched, not what was loaded
            yield Movement(Hop.LOAD, kind, visit)


def _weights(operation: Movement, shape: Shape) -> Iterator[Operation]:
    visit = operation.visit
    if operation.hop is Hop.FETCH:
        before = shape.fetched_visit(shape.fetches_before(shape.stage_number(visit)) - shape.fetches_ahead)
        if before is not None:
            yield Movement(Hop.LOAD, Kind.WEIGHTS, before)  # it empties the staging slot on the host
        return
    if shape.is_fetched(visit):
        yield Movement(Hop.FETCH, Kind.WEIGHTS, visit)
    before = shape.first_visit(shape.stage_number(visit) - shape.slots)
    if before is not None:
        yield Computation(Visit(before.pass_number, before.stage, shape.groups - 1))


def _cache(operation: Movement, shape: Shape) -> Iterator[Operation]:
    """What a fetch or a load of cache needs."""
    visit, kind = operation.visit, operation.kind
    before, earlier = _slot_before(visit, shape), shape.visit(shape.number(visit) - shape.stages * shape.groups)
    if operation.hop is Hop.FETCH:
        if earlier is not None:
            yield Movement(Hop.SPILL, kind, earlier)
        if before is not None:
            yield Movement(Hop.LOAD, kind, before)
            yield Computation(before)
            yield Movement(Hop.SPILL, kind, before)  # attention on the host appends to what was fetched
    else:
        yield Movement(Hop.FETCH, kind, visit)
        if earlier is not None:
            yield Movement(Hop.STORE, kind, earlier)
        if before is not None:
            yield Computation(before)
            yield Movement(Hop.STORE, kind, before)


def _activations(operation: Movement, shape: Shape) -> Iterator[Operation]:
    """What a fetch or a load of activations needs."""
    visit, kind, before = operation.visit, operation.kind, _slot_before(operation.visit, shape)
    if operation.hop is Hop.FETCH:
        yield from _made_by(visit, shape, Hop.SPILL)
        if before is not None:
            yield Movement(Hop.LOAD, kind, before)
    else:
        yield Movement(Hop.FETCH, kind, visit)
        yield from _made_by(visit, shape, Hop.STORE)
        if before is not None:
            yield Computation(before)
            yield Movement(Hop.STORE, kind, before)


def _made_by(visit: Visit, shape: Shape, hop: Hop) -> Iterator[Operation]:
    """What makes the visit's activations: the group's previous stage or, in the first one, the choice of its tokens."""
    previous = shape.visit(shape.number(visit) - shape.groups)
    if previous is None:
        return
    yield Movement(hop, Kind.ACTIVATIONS, previous) if visit.stage else Computation(previous)


def _results(operation: Movement, shape: Shape) -> Iterator[Operation]:
    """A store needs the computation and an empty staging slot on the host; a spill needs the store."""
    visit, kind = operation.visit, operation.kind
    if operation.hop is Hop.STORE:
        yield Computation(visit)
        before = _slot_before(visit, shape)
        if before is not None:
            yield Movement(Hop.SPILL, kind, before)
    else:
        yield Movement(Hop.STORE, kind, visit)
        yield Computation(visit)  # a spill straight from what attention on the host appended to


def _slot_before(visit: Visit, shape: Shape) -> Visit | None:
    """The visit that had the same slot last."""
    return shape.visit(shape.number(visit) - shape.slots)


def first_violation(order: Iterable[Beat], shape: Shape) -> tuple[Operation, Operation] | None:
    """The first operation that is started before one that it requires, with that one; None if the order is sound."""
    started: set[Operation] = set()
    for beat in order:
        for operation in beat.operations():
            for needed in requirements(operation, shape):
                if needed not in started:
                    return operation, needed
            started.add(operation)
    return None
