"""Visits and beats: the order of loads, computation and stores of one block; it knows no device, no size and no clock.

A pass walks all stages of the model once; the first is the prefill, each later one decodes a token per row. In a pass
every stage is visited once per group, groups innermost, so that one fetch of a stage's weights serves the whole block
(FlexGen, section 4.2, algorithm 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visit:
    """One stage computed for one group in one pass."""

    turn: int
    """Number of the pass; 0 is the prefill."""
    stage: int
    group: int


@dataclass(frozen=True, slots=True)
class Shape:
    """How much a block's schedule has of everything: at most `turns` passes over `stages` for `groups`.

    `slots` is how many stages' (or visits') streamed data may be on their way or in use at a time: 2 to work on one
    while the next arrives, 1 to do one thing after another. `kinds` are the kinds of data of which anything ever moves:
    what is all at home on the device needs no operations, no slot, and so no order.
    """

    turns: int
    stages: int
    groups: int
    slots: int
    kinds: frozenset[str] = frozenset(("weights", "cache", "activations"))

    def number(self, visit: Visit) -> int:
        """Visits before `visit`."""
        return (visit.turn * self.stages + visit.stage) * self.groups + visit.group

    def visit(self, number: int) -> Visit | None:
        """The visit with that number, None beyond either end."""
        if not 0 <= number < self.turns * self.stages * self.groups:
            return None
        walk, group = divmod(number, self.groups)
        return Visit(*divmod(walk, self.stages), group)

    def walk(self, visit: Visit) -> int:
        """Stages walked before the visit's, over all passes."""
        return visit.turn * self.stages + visit.stage

    def weights_slot(self, visit: Visit) -> int:
        """Which slot holds the streamed weights of the visit's stage."""
        return self.walk(visit) % self.slots

    def data_slot(self, visit: Visit) -> int:
        """Which slot holds the visit's streamed cache and activations."""
        return self.number(visit) % self.slots


MOVES = ("fetch", "load", "store", "spill")
"""disk -> host, host -> device, device -> host, host -> disk."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do for a visit: a move of a kind of data, or `compute` (kind empty).

    Weights belong to a stage, so their operations name the visit of group 0.
    """

    move: str
    kind: str
    visit: Visit


@dataclass(frozen=True, slots=True)
class Beat:
    """What is started together: moves ahead of need, one computation, moves of its results.

    Prologue and epilogue are beats whose computation, or whose moves, are idle.
    """

    ahead: tuple[Operation, ...]
    compute: Operation | None
    behind: tuple[Operation, ...]

    def operations(self) -> Iterator[Operation]:
        """All of them in the order in which they are started."""
        yield from self.ahead
        if self.compute is not None:
            yield self.compute
        yield from self.behind


def zigzag(turns: int, stages: int, groups: int) -> Iterator[Visit]:
    """Groups innermost, so that one fetch of a stage serves the whole block (FlexGen, section 4.2)."""
    for turn in range(turns):
        for stage in range(stages):
            for group in range(groups):
                yield Visit(turn, stage, group)


def _inward(kind: str, visit: Visit | None) -> tuple[Operation, ...]:
    if visit is None:
        return ()
    return Operation("fetch", kind, visit), Operation("load", kind, visit)


def _outward(visit: Visit) -> tuple[Operation, ...]:
    return tuple(Operation(move, kind, visit) for kind in ("cache", "activations") for move in ("store", "spill"))


def serial(shape: Shape) -> Iterator[Beat]:
    """Everything for one visit in one beat: the same visits with nothing ahead of its need."""
    for visit in zigzag(shape.turns, shape.stages, shape.groups):
        weights = _inward("weights", visit) if visit.group == 0 else ()
        ahead = (*weights, *_inward("cache", visit), *_inward("activations", visit))
        yield Beat(ahead, Operation("compute", "", visit), _outward(visit))


def overlapped(shape: Shape) -> Iterator[Beat]:
    """Loads one visit ahead (weights one stage, disk reads of weights two), stores right behind the computation."""
    first = Visit(0, 0, 0)
    start = (
        *_inward("weights", first),
        *_fetch_weights(shape, 1),
        *_inward("cache", first),
        *_inward("activations", first),
    )
    yield Beat(start, None, ())
    for visit in zigzag(shape.turns, shape.stages, shape.groups):
        following = shape.visit(shape.number(visit) + 1)
        ahead: list[Operation] = []
        if visit.group == 0:
            ahead += [
                Operation("load", "weights", operation.visit)
                for operation in _fetch_weights(shape, shape.walk(visit) + 1)
            ]
            ahead += _fetch_weights(shape, shape.walk(visit) + 2)
        ahead += _inward("cache", following)
        # A group's activations leave one stage for the next: with a single group they cannot arrive before this
        # visit's results have left, and with several they can.
        arriving = _inward("activations", following)
        behind = _outward(visit)
        if shape.groups == 1:
            behind += arriving
        else:
            ahead += arriving
        yield Beat(tuple(ahead), Operation("compute", "", visit), behind)


def _fetch_weights(shape: Shape, walk: int) -> tuple[Operation, ...]:
    """The disk read of the weights of stage number `walk` over all passes, if there is one."""
    if walk >= shape.turns * shape.stages:
        return ()
    return (Operation("fetch", "weights", Visit(*divmod(walk, shape.stages), 0)),)


def beats(shape: Shape, *, overlap: bool) -> Iterator[Beat]:
    """The block's beats: two ways of pipelining the same visits."""
    for beat in overlapped(shape) if overlap else serial(shape):
        ahead, behind = (tuple(each for each in part if each.kind in shape.kinds) for part in (beat.ahead, beat.behind))
        yield Beat(ahead, beat.compute, behind)
