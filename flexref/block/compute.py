"""Which operators of a block's visits are called when, and which are replayed; it starts no streaming between tiers.

What the head computes, tokens or scores, is left to the blocks that derive from it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from flexref.architecture.stages import Stage, StageKind
from flexref.backend.protocol import Array, Ticket
from flexref.block.group import FedRows, Group
from flexref.block.operators import VisitOperators
from flexref.block.replays import FedLengths, Made, Replays, key_of
from flexref.block.rows import Fed
from flexref.block.watch import Computed, TimedVisit
from flexref.block.workspace import FED_IDS
from flexref.schedule.zigzag import Visit


@dataclass(eq=False)
class BlockComputation(VisitOperators):
    """The computation of one block, without the head's visits (`_head`).

    Visits that come again with every pass are replayed where the port can and nobody looks on visit by visit: one by
    one or, if all that they need lies on the device, all of a group's in its first one.
    """

    REPLAYS: ClassVar[bool] = False
    """Whether passes come again and again."""
    replays: Replays = field(init=False)
    replayed_visits: int = field(init=False, default=0)
    _decoding: dict[int, Any] = field(init=False, default_factory=dict)
    """The handle of lengths of each group's last pass of decode."""
    _at_once: set[int] = field(init=False, default_factory=set)
    """The groups whose pass is run as a whole."""
    _ahead: dict[int, tuple[FedRows, bool]] = field(init=False, default_factory=dict)
    """What the pass has that a group's operators were called for already, and whether these were replayed."""
    _spans: deque[TimedVisit] = field(init=False, default_factory=deque)
    _fed: Fed = field(init=False, default_factory=Fed)

    def __post_init__(self) -> None:
        super().__post_init__()
        by_visit = self.watch.on_visit is not None or self.watch.on_hidden is not None
        self.replays = Replays(
            self.backend, self.planned.replays and self.REPLAYS and not by_visit, self.watch.on_notice
        )

    def compute(self, visit: Visit) -> None:
        """Call the visit's operators (see `executor.Work`)."""
        group, stage = self.groups[visit.group], self._stages[visit.stage]
        ends = visit.stage == len(self._stages) - 1
        if self.watch.on_place is not None and group.fed:
            self.watch.on_place(stage, visit.group, visit.pass_number)
        if visit.stage == 0:
            self.replays.begin_pass(visit.pass_number)
            self._begin_pass(visit, group)
            if group.fed:
                self._fed = self._fed + group.fed_in_pass
        if visit.group in self._at_once:
            if ends:
                self._take_tokens(visit, group)
        elif group.fed:
            if ends and visit.group == 0 and self._runs_at_once:
                self._record_ahead(visit.pass_number + 1)
            self._compute(visit, stage, group)
        if ends:
            self._end_pass(visit, group)

    def _begin_pass(self, visit: Visit, group: Group) -> None:
        """Run the group's whole pass, if that may be: then its other visits have nothing left to do."""
        self._at_once.discard(visit.group)
        ahead, replayed = self._ahead.pop(visit.group, (None, False))
        if ahead is not None and ahead.in_pass is group.in_pass:
            self._at_once.add(visit.group)
            self.replayed_visits += len(self._stages) if replayed else 0
            return
        if not (self._runs_at_once and self._may_replay(visit.group, group)):
            return
        self._at_once.add(visit.group)
        self.weights.ready()
        with self.backend.frame():
            ids = self.backend.upload(group.whole_pass())
            self._call(visit, group, self._handles(visit.group), partial(self._whole_pass, visit, group, ids))

    def _run_ahead(self, pass_number: int, number: int, fed: FedRows, choose: Callable[[Any], Made]) -> Made | None:
        """Call a group's next pass, if it is recorded, while the host does not know yet what it feeds.

        `choose` is to write that on the device, int32 (T,); its result is given. None: nothing was called. If the pass
        turns out to be another one, it is called anew: this one has written nothing but records of tokens that are
        written again, or of rows that have ended.
        """
        held = self._handles(number)
        key = key_of("pass", number, fed.tokens, held)
        if not self.replays.has(key):
            return None
        visit = Visit(pass_number, 0, number)
        with self.backend.frame():
            ids = self.backend.upload(fed.ids)
            chosen = choose(ids[: fed.tokens])
            replayed = self.replays.call(key, held, partial(self._whole_pass, visit, fed, ids))
        self._ahead[number] = fed, replayed  # visits count when they come
        return chosen

    @property
    def _runs_at_once(self) -> bool:
        """Whether a group's pass may be run as a whole: nothing moves, and no other group reads for it in this pass."""
        still = not self.shape.kinds and not any(group.reads for group in self.groups)
        return still and self.replays.on and self.watch.on_computed is None

    def _record_ahead(self, pass_number: int) -> None:
        """Record the groups' next passes as they will be if no row ends, while the device is still reading prompts."""
        for number, group in enumerate(self.groups):
            fed = group.foresee() if group.fed and not group.decodes else None
            if fed is None or self._expands(fed.tokens):
                continue
            self._lengths_of(number, fed)
            held = self._handles(number)
            with self.backend.frame():
                ids = self.backend.empty((FED_IDS * fed.tokens,), "int32")
                operators = partial(self._whole_pass, Visit(pass_number, 0, number), fed, ids)
                self.replays.prepare(key_of("pass", number, fed.tokens, held), held, operators)

    def _whole_pass(self, visit: Visit, group: Group | FedRows, ids: Any) -> None:
        """The operators of all visits of a group in a pass; ids int32 (3 T,): tokens, positions, each row's last."""
        last = 2 * group.tokens
        for number, stage in enumerate(self._stages):
            there = Visit(visit.pass_number, number, visit.group)
            with self.backend.frame():
                if stage.kind is StageKind.EMBED:
                    self._embed_operators(there, group, ids[:last])
                elif stage.kind is StageKind.LAYER:
                    self._layer_operators(there, group)
                else:
                    self._head_operators(there, group, ids[last:] if stage.index == 0 else None)

    def _may_replay(self, number: int, group: Group) -> bool:
        """Whether what the group's visits call is the same in every pass, but for what lies in arrays and handles."""
        if not (self.replays.on and group.fed and group.decodes):
            return False
        return not self._expands(group.tokens) and self._lengths_of(number, group).away is None

    def _expands(self, tokens: int) -> bool:
        """Whether products of so many tokens have their matrices expanded first."""
        return self.plan.expanded.nbytes > 0 and tokens > self.backend.caps.fused_rows

    def _call(self, visit: Visit, group: Group, held: Sequence[Any], operators: Callable[[], None]) -> None:
        """Call a visit's operators, or replay them. held: the handles that they use."""
        whole = visit.group in self._at_once
        if not (whole or self._may_replay(visit.group, group)):
            operators()
            return
        where = "pass" if whole else (visit.stage, self._data_slot(visit), self._weights_slot(visit))
        if self.replays.call(key_of(where, visit.group, group.tokens, held), held, operators):
            self.replayed_visits += len(self._stages) if whole else 1

    def _handles(self, number: int) -> tuple[Any, Any]:
        """What stands for a group's lengths and for its rows in all layers, as long as these can be renewed."""
        return self._lengths[number].near, self._cache.handles_of(number)

    def _compute(self, visit: Visit, stage: Stage, group: Group) -> None:
        if self.watch.on_visit is not None:
            self.watch.on_visit(stage, visit.group, visit.pass_number)
        # On an asynchronous port operators run later than they are called, so marks are timed, and not the calls.
        begin = self._begin(visit) if self.watch.on_computed is not None else None
        fed = len(group.fed), group.tokens
        if stage.kind is StageKind.EMBED:
            self._embed(visit, group)
        elif stage.kind is StageKind.LAYER:
            self._layer(visit, group)
        else:
            self._head(visit, stage, group)
        if self.watch.on_hidden is not None and stage.kind is not StageKind.HEAD:
            self.watch.on_hidden(stage, group.row_numbers(), self.backend.download(self._x(visit, group)))
        if begin is not None:
            self._spans.append(TimedVisit(stage, visit, fed, begin, self.backend.mark()))

    def take_fed(self) -> Fed:
        """What was fed since the last call, usually one pass."""
        fed, self._fed = self._fed, Fed()
        return fed

    def tell_watch(self, *, wait: bool = True) -> None:
        """Tell the watch of visits that have ended since the last call; with `wait`, wait for all that were called."""
        while self._spans and (wait or self._spans[0].end.done()):
            span = self._spans.popleft()
            assert self.watch.on_computed is not None
            times = span.begin.times()[0][0], span.end.times()[0][0]
            self.watch.on_computed(Computed(span.stage, span.visit, *span.fed, *times))

    def release(self) -> None:
        """Release all memory. Before that, tell the watch of the visits that have ended, for an interrupted run."""
        try:
            self.tell_watch(wait=False)
        finally:
            self.replays.release()
            super().release()

    def _begin(self, visit: Visit) -> Ticket:
        """A mark before the visit's operators; the watch is told of visits and copies that have ended by now."""
        if visit.group == 0:
            self.mover.harvest()
        self.tell_watch(wait=False)
        return self.backend.mark()

    def _embed(self, visit: Visit, group: Group) -> None:
        """Write the hidden states of the group's new tokens."""
        with self.backend.frame():
            ids = self.backend.upload(np.concatenate((group.token_ids(), group.position_ids())))
            self._call(visit, group, (), partial(self._embed_operators, visit, group, ids))

    def _layer(self, visit: Visit, group: Group) -> None:
        """Compute one decoder layer in place."""
        self._lengths_of(visit.group, group)
        self._call(visit, group, self._handles(visit.group), partial(self._layer_operators, visit, group))

    def _lengths_of(self, number: int, group: Group | FedRows) -> FedLengths:
        """The lengths of the group's rows in a pass: the handle of its last pass of decode, renewed, or a new one."""
        known, rows = self._lengths.get(number), group.in_pass
        if known is None or known.rows is not rows:
            near = self._cache.near_rows(number, rows)
            made = partial(FedLengths.of, self.backend, rows, near, self._decoding.get(number))
            known = self._lengths[number] = self.replays.giving_way(made)
            if known.decodes:
                self._decoding[number] = known.near
        return known

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        """Compute one tile of the head for one group."""
        raise NotImplementedError

    def _head_operators(self, visit: Visit, group: Group | FedRows, last: Array | None) -> None:
        """The head's operators of a pass that is run as a whole; in its first tile `last` (B,) are the rows' tokens."""
        raise NotImplementedError

    def _take_tokens(self, visit: Visit, group: Group) -> None:
        """Such a pass has been called for a group: take what comes of it."""
        raise NotImplementedError

    def _end_pass(self, visit: Visit, group: Group) -> None:
        """The pass is over for one group, which may be empty: its rows go on, and others come in."""
        raise NotImplementedError
