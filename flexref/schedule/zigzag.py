"""Yields the order of loads, computations and stores of one block; it knows no device, no size and no clock.

A *pass* goes through all stages of the model once: the embedding, every decoder layer, every tile of the head. A
*visit* is one stage computed for one group of rows. Visits of a stage follow each other, so that one fetch of its
weights serves all groups of the block (FlexGen, section 4.2, algorithm 1). The rows decide which tokens a pass feeds.

The schedule is data. A *beat* says what is started together, and `beats` yields all of them in order. The executor runs
beats on a port, the simulator runs the same beats on a clock, and `hazards` says what each operation must wait for.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count

from flexref.units import Kind


class Hop(str, Enum):
    """The four directions in which data moves from a tier to its neighbour."""

    FETCH = "fetch"
    """disk -> host"""
    LOAD = "load"
    """host -> device"""
    STORE = "store"
    """device -> host"""
    SPILL = "spill"
    """host -> disk"""

    __hash__ = str.__hash__  # as `units.Kind`


@dataclass(frozen=True, slots=True)
class Visit:
    """One stage computed for one group in one pass."""

    pass_number: int
    stage: int
    group: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a block's schedule: `passes` passes over `stages` stages, each for `groups` groups.

    `passes` is None where nobody knows how many there will be, since rows come as others end.
    `slots`: places in device memory for streamed data, each for one stage's weights, or one visit's cache and
    activations. With 2, one is used while the other is filled; with 1, one thing is done after another. `kinds`: the
    kinds of data that move. A kind that lies on the device as a whole has no movements and no slots.

    `fetched`: the stages of which weights are read from disk in every pass, in order; None: all of them. `fetch_slots`:
    places on the host for those of one stage each, so that as many stages may be read before they are loaded; None: as
    many as `slots`. Both are counted among fetched stages alone, over the end of a pass too.
    """

    passes: int | None
    stages: int
    groups: int
    slots: int
    kinds: frozenset[Kind] = frozenset(Kind)
    fetched: tuple[int, ...] | None = None
    fetch_slots: int | None = None

    def number(self, visit: Visit) -> int:
        """The visit's number in the order of the schedule, from 0."""
        return self.stage_number(visit) * self.groups + visit.group

    def visit(self, number: int) -> Visit | None:
        """The visit with that number, None beyond either end."""
        if number < 0 or (self.passes is not None and number >= self.passes * self.stages * self.groups):
            return None
        stage_number, group = divmod(number, self.groups)
        return Visit(*divmod(stage_number, self.stages), group)

    def stage_number(self, visit: Visit) -> int:
        """The number of the visit's stage, counted over all passes from 0."""
        return visit.pass_number * self.stages + visit.stage

    def first_visit(self, stage_number: int) -> Visit | None:
        """The visit of group 0 in the stage with that number over all passes, None beyond either end."""
        return self.visit(stage_number * self.groups)

    def ends_pass(self, visit: Visit) -> bool:
        """Whether the visit is the last one of its pass."""
        return visit.stage == self.stages - 1 and visit.group == self.groups - 1

    def weights_slot(self, visit: Visit) -> int:
        """Which slot holds the streamed weights of the visit's stage."""
        return self.stage_number(visit) % self.slots

    @property
    def fetches_ahead(self) -> int:
        """The number of places on the host for weights from disk."""
        return self.slots if self.fetch_slots is None else self.fetch_slots

    def fetches_before(self, stage_number: int) -> int:
        """How many stages have weights read from disk among those before the one with that number over all passes."""
        if self.fetched is None:
            return stage_number
        pass_number, stage = divmod(stage_number, self.stages)
        return pass_number * len(self.fetched) + bisect_left(self.fetched, stage)

    def is_fetched(self, visit: Visit) -> bool:
        """Whether weights of the visit's stage are read from disk."""
        number = self.stage_number(visit)
        return self.fetches_before(number) < self.fetches_before(number + 1)

    def fetched_visit(self, number: int) -> Visit | None:
        """The visit of group 0 for which the weights with that number among all that are read from disk are read.

        None beyond either end.
        """
        if self.fetched is None:
            return self.first_visit(number)
        if number < 0 or not self.fetched:
            return None
        pass_number, place = divmod(number, len(self.fetched))
        return self.first_visit(pass_number * self.stages + self.fetched[place])

    def fetch_slot(self, visit: Visit) -> int:
        """Which place on the host holds what is read from disk for the visit's stage."""
        return self.fetches_before(self.stage_number(visit)) % self.fetches_ahead

    def data_slot(self, visit: Visit) -> int:
        """Which slot holds the visit's streamed cache and activations."""
        return self.number(visit) % self.slots


@dataclass(frozen=True, slots=True)
class Movement:
    """Move one kind of a visit's data by one hop. Weights serve all groups: theirs names the visit of group 0."""

    hop: Hop
    kind: Kind
    visit: Visit


@dataclass(frozen=True, slots=True)
class Computation:
    """Call a visit's operators."""

    visit: Visit


Operation = Movement | Computation
"""One thing to do for a visit."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What is started together: movements for later visits (`ahead`), one computation, movements of its results
    (`after`).

    The first beat of an overlapped block has no computation.
    """

    ahead: tuple[Movement, ...]
    computation: Computation | None
    after: tuple[Movement, ...]

    def operations(self) -> Iterator[Operation]:
        """All of them in the order in which they are started."""
        yield from self.ahead
        if self.computation is not None:
            yield self.computation
        yield from self.after


GoesOn = Callable[[int], bool]
"""Whether the pass with that number may come, as far as is known when it is asked."""


def always(pass_number: int) -> bool:
    """Every pass comes that the shape has."""
    return True


def zigzag(passes: int | None, stages: int, groups: int) -> Iterator[Visit]:
    """All visits in order, groups innermost: one fetch of a stage serves the whole block (FlexGen, section 4.2)."""
    for pass_number in count() if passes is None else range(passes):
        for stage in range(stages):
            for group in range(groups):
                yield Visit(pass_number, stage, group)


def _inward(shape: Shape, kind: Kind, visit: Visit | None) -> tuple[Movement, ...]:
    """Both hops of a visit's data to the device; nothing for no visit, or of a kind that never moves."""
    if visit is None or kind not in shape.kinds:
        return ()
    return Movement(Hop.FETCH, kind, visit), Movement(Hop.LOAD, kind, visit)


def _weights_inward(shape: Shape, visit: Visit) -> tuple[Movement, ...]:
    """Both hops of a stage's weights; the first one only if some of them are read from disk."""
    hops = _inward(shape, Kind.WEIGHTS, visit)
    return hops if shape.is_fetched(visit) else hops[1:]


def _outward(shape: Shape, visit: Visit) -> tuple[Movement, ...]:
    """Both hops of a visit's results from the device, of the kinds that move."""
    return tuple(
        Movement(hop, kind, visit)
        for kind in (Kind.CACHE, Kind.ACTIVATIONS)
        if kind in shape.kinds
        for hop in (Hop.STORE, Hop.SPILL)
    )


def serial(shape: Shape) -> Iterator[Beat]:
    """Without overlap: a beat has all movements of one visit and its computation."""
    for visit in zigzag(shape.passes, shape.stages, shape.groups):
        weights = _weights_inward(shape, visit) if visit.group == 0 else ()
        ahead = (*weights, *_inward(shape, Kind.CACHE, visit), *_inward(shape, Kind.ACTIVATIONS, visit))
        yield Beat(ahead, Computation(visit), _outward(shape, visit))


class _Weights:
    """Movements of weights in the order of the stages, each once: of reads from disk those that are not begun yet."""

    def __init__(self, shape: Shape, goes_on: GoesOn) -> None:
        self._shape, self._goes_on = shape, goes_on
        self._moves = Kind.WEIGHTS in shape.kinds
        self._fetched = 0

    def comes(self, visit: Visit | None, during: int) -> bool:
        """Whether the visit takes place, as far as is known in pass number `during`: of the one after it, at most."""
        if visit is None or visit.pass_number > during + 1:
            return False
        return visit.pass_number == during or self._goes_on(visit.pass_number)

    def fetches(self, before: int, during: int) -> Iterator[Movement]:
        """Reads of all stages whose number among those that are read is less than `before`, as far as they come."""
        while self._moves and self._fetched < before:
            visit = self._shape.fetched_visit(self._fetched)
            if visit is None or not self.comes(visit, during):
                return
            yield Movement(Hop.FETCH, Kind.WEIGHTS, visit)
            self._fetched += 1

    def load(self, stage_number: int, during: int) -> Iterator[Movement]:
        """A stage's load, by its number over all passes; before it its read, if that has not begun."""
        visit = self._shape.first_visit(stage_number)
        if visit is not None and self._moves and self.comes(visit, during):
            yield from self.fetches(self._shape.fetches_before(stage_number + 1), during)
            yield Movement(Hop.LOAD, Kind.WEIGHTS, visit)


def overlapped(shape: Shape, goes_on: GoesOn = always) -> Iterator[Beat]:
    """With overlap: cache and activations are loaded one visit early, weights one stage early.

    Weights are read from disk as early as there is a place for them on the host: each of these is free when the stage
    that had it last is to be computed, since it has been loaded then. Results are stored right after the computation.
    Nothing is loaded for a pass that does not come.
    """
    first, weights = Visit(0, 0, 0), _Weights(shape, goes_on)
    start = (
        *weights.load(0, 0),
        *weights.fetches(shape.fetches_ahead, 0),
        *_inward(shape, Kind.CACHE, first),
        *_inward(shape, Kind.ACTIVATIONS, first),
    )
    yield Beat(start, None, ())
    for visit in zigzag(shape.passes, shape.stages, shape.groups):
        following, during = shape.visit(shape.number(visit) + 1), visit.pass_number
        ahead: list[Movement] = []
        if visit.group == 0:
            following_stage = shape.stage_number(visit) + 1
            ahead += weights.load(following_stage, during)
            ahead += weights.fetches(shape.fetches_before(following_stage) + shape.fetches_ahead, during)
        if not weights.comes(following, during):
            following = None
        ahead += _inward(shape, Kind.CACHE, following)
        # The next visit's activations: with a single group they are the results of this very visit, and can only be
        # loaded after it; with several groups they are another group's, which are there already.
        arriving = _inward(shape, Kind.ACTIVATIONS, following)
        after = _outward(shape, visit)
        if shape.groups == 1:
            after += arriving
        else:
            ahead += arriving
        yield Beat(tuple(ahead), Computation(visit), after)


def beats(shape: Shape, *, overlap: bool, goes_on: GoesOn = always) -> Iterator[Beat]:
    """The block's beats, overlapped or serial: two ways of pipelining the same visits.

    They end with the last pass of the shape, or when nobody asks for more. Where nothing moves, they only compute.
    """
    if not shape.kinds:
        yield from (Beat((), Computation(visit), ()) for visit in zigzag(shape.passes, shape.stages, shape.groups))
        return
    yield from overlapped(shape, goes_on) if overlap else serial(shape)
