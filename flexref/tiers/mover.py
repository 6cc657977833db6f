"""Starts copies on a port's lanes, waits for them and keeps account of them; it knows bytes, not what they mean."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from flexref.backend.protocol import Array, Backend, HostWork, Lane, LaneStep, Move, Span, Ticket
from flexref.errors import FlexrefError, LaneFailed, SpillDamaged, described, is_refused_resource
from flexref.tiers.open_work import WorkBoard
from flexref.tiers.reads_ahead import ReadsAhead
from flexref.tiers.transfer import (
    Bytes,
    Copy,
    Crossing,
    Done,
    FileOfPieces,
    Gather,
    HostOperators,
    Region,
    Traffic,
    Transfer,
    host_bytes,
)
from flexref.units import Tier

LOG = logging.getLogger(__name__)

READING = Lane.DISK_IN, Lane.LOADING
"""The lanes that read from disk. What a mover submits at a time goes to one of them alone."""

COMPUTE, CROSSING = "compute", "crossing"
"""In place of a lane's name: the operators, and what crosses a link in order with them."""


def _nothing() -> None:
    """What a mover checks if nobody wants it to."""


class Mover:
    """Puts copies on the port's lanes and keeps account of them.

    What it promises. `submit` only starts copies: their bytes are counted at once, their seconds when somebody looks.
    `harvest` looks, and waits for nothing. `settle` waits: when it has returned or raised, no lane and no operator
    reads or writes anything any more, so that memory may be given back; what failed since the last time is raised once,
    here, and never by a later call; what was to be read from disk and has not had its turn is not read any more. `run`
    is `submit` and `settle`. All of it belongs to one thread at a time.

    `check` is called after every `run`, and by the executor after every beat: places where nothing is half done, at
    which it may raise what is to end the work. `abandoned`: somebody broke `settle` off while it waited; lanes may be
    at work for ever, and no memory may be given back that copies know of. So it is in a forked process, without lanes.
    `board`: what lanes do on the host just now, for any thread to look at. What is settled for itself, though lanes do
    it beside all else, has a mover of its own (`beside`).
    """

    def __init__(self, backend: Backend, traffic: Traffic, check: Callable[[], None] = _nothing) -> None:
        self.backend, self.traffic, self.check = backend, traffic, check
        self.board = WorkBoard()
        self._own = object()
        self._broken_off = set[object]()  # who waits, or waited and was broken off, of this one and those beside it
        self._ahead = ReadsAhead(lambda copy: self._host_piece(copy.target, 0))
        self._process = os.getpid()
        self._open: list[tuple[Lane, Sequence[Transfer], Ticket, object]] = []
        self._crossings: deque[tuple[Crossing, Ticket, Ticket]] = deque()
        self._unsure: set[Lane] = set()
        self._unread: dict[int, tuple[Copy, int]] = {}
        """Copies that were not read after all, by their identity, and bytes of each that had come."""

    @property
    def abandoned(self) -> bool:
        """See above: of this mover or of one beside it."""
        return bool(self._broken_off)

    def beside(self) -> "Mover":
        """Another one on the same lanes and board, for copies of which this one neither counts the bytes nor waits;
        the seconds of its lanes count here, and whoever listens to finished copies hears of them, too."""
        mover = Mover(self.backend, Traffic(on_done=self._done_beside), self.check)
        mover.board, mover._broken_off = self.board, self._broken_off
        return mover

    def _done_beside(self, done: Done) -> None:
        self.traffic.worked(done.lane, done.end_s - done.start_s)
        if self.traffic.on_done is not None:
            self.traffic.on_done(done)

    def submit(self, lane: Lane, copies: Sequence[Transfer], after: Sequence[Ticket], purpose: object = None) -> Ticket:
        """Run `copies` one after another on `lane` when `after` is done; a trace is told of their `purpose`."""
        for copy in copies:
            self.traffic.started(copy)
        if lane in READING and self.backend.caps.computes:
            self._ahead.expect(copies, after)
        self._unsure.add(lane)  # until the ticket is noted: `settle` waits for the lane if it never is
        ticket = self.backend.submit(lane, [self._step(lane, copy) for copy in copies], after)
        self._open.append((lane, copies, ticket, purpose))
        self._unsure.discard(lane)
        return ticket

    def run(self, lane: Lane, copies: Sequence[Transfer]) -> None:
        """Run `copies` now; however it ends, nothing is under way any more, and nothing is left to be raised later."""
        try:
            self.submit(lane, copies, ()).wait()
        finally:
            self.settle()
        self.check()

    def carry(self, crossing: "Crossing", source: Array, target: Array) -> None:
        """Copy an operator's array to or from the host, in order with the operators; counted like any other copy.

        For a trace it is timed by the port's own clock, else by the host's.
        """
        self.traffic.started(crossing)
        if self.traffic.on_done is not None:
            begin = self.backend.mark()
            self.backend.assign(target, source)
            self._crossings.append((crossing, begin, self.backend.mark()))
            return
        start = time.perf_counter()
        self.backend.assign(target, source)
        self.traffic.finished(CROSSING, crossing, (start, time.perf_counter()))

    def harvest(self) -> None:
        """Take the times of what is done; raises the failure of what failed."""
        if not (self._open or self._crossings or self._unread or self._ahead.has_unread):
            return  # asked between any two passes
        started, self._open = self._open, []
        self._unread.update((id(entry[0]), entry) for entry in self._ahead.take_unread())
        failure: Exception | None = None
        for entry in started:
            lane, copies, ticket, purpose = entry
            if not ticket.done():
                self._open.append(entry)
                continue
            try:
                ticket.wait()
            except Exception as error:
                failure = failure or error
                self._read_of(copies)
                continue
            read = self._read_of(copies)
            for copy, span_s in zip(copies, ticket.times(), strict=True):
                if id(copy) in read:
                    self.traffic.finished(lane, copy, span_s, purpose)
        if not self._open:  # those that are left are of submissions whose tickets were lost
            self._read_of([copy for copy, _ in self._unread.values()])
        while self._crossings and self._crossings[0][2].done():  # operators end in the order of their calls
            crossing, begin, end = self._crossings.popleft()
            self.traffic.finished(CROSSING, crossing, (begin.times()[0][0], end.times()[0][0]))
        if failure is not None:
            raise failure

    def _read_of(self, copies: Sequence[Transfer]) -> set[int]:
        """The identities of those of the copies that were made; of the others only what had come counts."""
        made = set[int]()
        for copy in copies:
            unread = self._unread.pop(id(copy), None)
            if unread is None:
                made.add(id(copy))
            else:
                self.traffic.unread(*unread)
        return made

    def settle(self) -> None:
        """Wait until everything that was submitted, and every operator that was called, has ended; then `harvest`.

        Where the waiting of a mover beside this one was broken off it does not wait: what hangs there may hang here.
        """
        given_up = bool(self._broken_off - {self._own})
        self._broken_off.add(self._own)  # whatever breaks the waiting off, even between two lines, leaves it so
        if os.getpid() != self._process:
            return
        if given_up:
            self._ahead.give_up()
            return
        try:
            if self._ahead.are_expected:
                with suppress(Exception):  # it is waited for once more below
                    self.backend.mark().wait()  # operators that were called have had what they need
                self._ahead.give_up()
            for _, _, ticket, _ in self._open:
                with suppress(Exception):  # `harvest` raises it, when nothing runs any more
                    ticket.wait()
            for lane in tuple(self._unsure):
                self.backend.submit(lane, (), ()).wait()
                self._unsure.discard(lane)
            self._ahead.end()  # every lane is at rest: none begins to ask for anything any more
            self.backend.mark().wait()
        except Exception:  # the device itself has failed: nothing runs on it
            self._ahead.end()
            self._broken_off.discard(self._own)
            raise
        self._broken_off.discard(self._own)
        self.harvest()

    def _step(self, lane: Lane, copy: Transfer) -> LaneStep:
        if isinstance(copy, Gather):
            call = partial(self._on_board, lane, copy, copy.call)
            return HostWork(copy.what, call, copy.kind.value, copy.link, copy.nbytes, copy.gathered_bytes)
        if isinstance(copy, HostOperators):
            return HostWork(copy.what, partial(self._on_board, lane, copy, copy.call), operators=True)
        if Tier.DISK in (copy.source.tier, copy.target.tier):
            move = self._read if copy.source.tier is Tier.DISK else self._write
            call = partial(self._on_board, lane, copy, partial(move, lane, copy))
            return HostWork(copy.what, call, copy.kind.value, copy.link, copy.nbytes)
        count = copy.pieces.count
        source, target = copy.source, copy.target
        return Move(
            copy.what,
            Span(source.place, source.offset, source.nbytes, count, copy.pieces.source_stride),  # type: ignore[arg-type]
            Span(target.place, target.offset, target.nbytes, count, copy.pieces.target_stride),  # type: ignore[arg-type]
            copy.parts,
        )

    def _on_board(self, lane: Lane, copy: Transfer, call: Callable[[], None]) -> None:
        """Make a call on a lane's thread; meanwhile it is on the board.

        What nobody foresaw, be it a bug, a library's own error or `SystemExit`, ends no thread and no process here: it
        becomes `LaneFailed`, which the main thread finds when it waits, and then waits for all the other lanes.
        """
        self.board.begin(lane, copy.what, copy.link, copy.nbytes)
        try:
            call()
        except (FlexrefError, OSError, MemoryError):
            raise
        except BaseException as error:
            if is_refused_resource(error):
                raise
            LOG.debug("lane %s failed in %s", lane, copy.what, exc_info=True)
            raise LaneFailed(f"lane {lane} failed in {copy.what}: {described(error)} (-vv shows where)") from error
        finally:
            self.board.end(lane)

    def _read(self, lane: Lane, copy: Copy) -> None:
        with self._ahead.turn(copy) as wanted:
            if wanted:
                self._read_pieces(lane, copy)

    def _read_pieces(self, lane: Lane, copy: Copy) -> None:
        place = copy.source.place
        pieces = self._pieces(copy.source.offset, copy.pieces.source_stride, copy, copy.target)
        done = self._told(lane, copy)
        try:
            if len(pieces) > 1 and isinstance(place, FileOfPieces):
                place.read_pieces(pieces, done)
                return
            for offset, memory in pieces:
                place.read(offset, memory)  # type: ignore[union-attr]
                done()
        except SpillDamaged as error:
            raise SpillDamaged(f"{copy.what}: {error}") from error

    def _write(self, lane: Lane, copy: Copy) -> None:
        place = copy.target.place
        pieces = self._pieces(copy.target.offset, copy.pieces.target_stride, copy, copy.source)
        done = self._told(lane, copy)
        if len(pieces) > 1 and isinstance(place, FileOfPieces):
            place.write_pieces(pieces, done)
            return
        for offset, memory in pieces:
            place.write(offset, memory)  # type: ignore[union-attr]
            done()

    def _told(self, lane: Lane, copy: Copy) -> Callable[[], None]:
        """Says on the board that one more piece has been moved."""
        return partial(self.board.begin, lane, copy.what, copy.link, copy.nbytes)

    def _pieces(self, offset: int, stride: int, copy: Copy, memory: Region) -> list[tuple[int, Bytes]]:
        """Where each piece of a copy lies in its file, from `offset` on, and in the host's `memory`."""
        here = copy.pieces.source_stride if memory is copy.source else copy.pieces.target_stride
        numbers = range(copy.pieces.count)
        return [(offset + number * stride, self._host_piece(memory, number * here)) for number in numbers]

    def _host_piece(self, first: Region, distance: int) -> Bytes:
        """As many bytes as a host region has, `distance` bytes further on."""
        return host_bytes(self.backend, Region(first.tier, first.place, first.offset + distance, first.nbytes))
