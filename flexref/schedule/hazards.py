"""What must have happened before what: said only here, for the executor that waits and the tests that check.

`before` is the visit, or for weights the stage, that had the same slot last: `slots` of them earlier. `earlier` is the
same visit in the last pass, `stage` the group's last stage; in the first stage it is the computation of the last pass
that chose the group's tokens.

| operation | where its data come from | what leaves it its room |
| --- | --- | --- |
| fetch weights | the file | load of `before`: it empties the staging slot on the host |
| load weights | its fetch | compute of the last group of `before`, which reads the slot |
| fetch cache | spill of `earlier` | load, compute and spill of `before`: attention on the host works in staging |
| load cache | its fetch; store of `earlier` | compute and store of `before`, in and from the slot |
| fetch activations | spill of `stage` | load of `before` |
| load activations | its fetch; store of `stage` | compute and store of `before` |
| compute | load of the stage's weights; fetch and load of cache and activations | the slot is its own |
| store | its compute | spill of `before`: it empties the staging slot on the host |
| spill | its store; its compute, where attention on the host appends to staging | its home is its own |
"""

from collections.abc import Iterable, Iterator

from flexref.schedule.zigzag import Beat, Operation, Shape, Visit


def requirements(operation: Operation, shape: Shape) -> Iterator[Operation]:
    """The operations that must be complete before `operation` may start: its data, and the room for its result.

    Moves of one kind of data wait for each other and for computations alone, so that a kind that never moves can be
    left out.
    """
    for needed in _requirements(operation, shape):
        if needed.move == "compute" or needed.kind in shape.kinds:
            yield needed


def _requirements(operation: Operation, shape: Shape) -> Iterator[Operation]:
    if operation.kind == "weights":
        yield from _weights(operation, shape)
    elif operation.kind == "cache":
        yield from _cache(operation, shape)
    elif operation.kind == "activations":
        yield from _activations(operation, shape)
    else:
        visit = operation.visit
        yield Operation("load", "weights", Visit(visit.turn, visit.stage, 0))
        for kind in ("cache", "activations"):
            yield Operation("fetch", kind, visit)  # attention on the host reads what was fetched, not what was loaded
            yield Operation("load", kind, visit)


def _weights(operation: Operation, shape: Shape) -> Iterator[Operation]:
    visit = operation.visit
    if operation.move == "load":
        yield Operation("fetch", "weights", visit)
    earlier = shape.walk(visit) - shape.slots
    if earlier < 0:
        return
    before = Visit(*divmod(earlier, shape.stages), 0)
    if operation.move == "fetch":
        yield Operation("load", "weights", before)  # it empties the staging slot on the host
    else:
        yield Operation("compute", "", Visit(before.turn, before.stage, shape.groups - 1))


def _cache(operation: Operation, shape: Shape) -> Iterator[Operation]:
    visit, move = operation.visit, operation.move
    before = shape.visit(shape.number(visit) - shape.slots)
    last_turn = Visit(visit.turn - 1, visit.stage, visit.group) if visit.turn else None
    if move == "fetch":
        if last_turn is not None:
            yield Operation("spill", "cache", last_turn)
        if before is not None:
            yield Operation("load", "cache", before)
            yield Operation("compute", "", before)
            yield Operation("spill", "cache", before)  # attention on the host appends to what was fetched
    elif move == "load":
        yield Operation("fetch", "cache", visit)
        if last_turn is not None:
            yield Operation("store", "cache", last_turn)
        if before is not None:
            yield Operation("compute", "", before)
            yield Operation("store", "cache", before)
    else:
        yield from _results(operation, shape, before)


def _activations(operation: Operation, shape: Shape) -> Iterator[Operation]:
    visit, move = operation.visit, operation.move
    before = shape.visit(shape.number(visit) - shape.slots)
    if move == "fetch":
        yield from _made_by(visit, shape, "spill")
        if before is not None:
            yield Operation("load", "activations", before)
    elif move == "load":
        yield Operation("fetch", "activations", visit)
        yield from _made_by(visit, shape, "store")
        if before is not None:
            yield Operation("compute", "", before)
            yield Operation("store", "activations", before)
    else:
        yield from _results(operation, shape, before)


def _made_by(visit: Visit, shape: Shape, move: str) -> Iterator[Operation]:
    """What leaves the group's previous stage; in the first stage, the tokens that the last pass chose."""
    if visit.stage:
        yield Operation(move, "activations", Visit(visit.turn, visit.stage - 1, visit.group))
    elif visit.turn:
        yield Operation("compute", "", Visit(visit.turn - 1, shape.stages - 1, visit.group))


def _results(operation: Operation, shape: Shape, before: Visit | None) -> Iterator[Operation]:
    """A store needs the computation and an empty staging slot on the host; a spill needs the store."""
    if operation.move == "store":
        yield Operation("compute", "", operation.visit)
        if before is not None:
            yield Operation("spill", operation.kind, before)
    else:
        yield Operation("store", operation.kind, operation.visit)
        yield Operation("compute", "", operation.visit)  # a spill straight from what attention on the host appended to


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
