"""Generates tokens and their text on a session, for rows that come and go; it knows no file and no device."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial

from flexref.block import executor
from flexref.block.admission import WINDOWS, Lender, Waiting
from flexref.block.generate_block import GenerateBlock
from flexref.block.planned_block import PlannedBlock
from flexref.block.prefixes import PrefixFinder
from flexref.block.rows import Row, RowLengths
from flexref.block.watch import Watch
from flexref.engine.account import Account, add_bytes
from flexref.engine.block_log import logged
from flexref.engine.events import Listeners, Notice
from flexref.engine.logprobs import LogprobRecorder
from flexref.engine.reading_ahead import ReadingLess
from flexref.engine.request import RowRequest
from flexref.engine.results import RowResult, Stats, StreamedToken
from flexref.engine.served import Served, notice_of_cut_rows, serve
from flexref.engine.session import Session, check_policy
from flexref.errors import CapacityError, FlexrefError
from flexref.policy import Policy

LOG = logging.getLogger(__name__)

EVENTS_AFTER_STAGES = 4
"""The tokens of a pass are yielded when the next pass has begun this many stages, so that the device has work while the
caller handles them."""

FIRST_LOOK = 256
"""So many requests of a stream are looked at before a policy is chosen for it."""


class GenerationJob:
    """One call of `generate`, `stream` or `run`: its rows, their texts, its policy and its account.

    Results of rows that have ended are taken with `take_results`, in the order in which they end. `lengths`: of all, or
    of the rows of a stream that were looked at before a policy was chosen.
    """

    def __init__(
        self,
        session: Session,
        requests: Iterable[RowRequest],
        policy: Policy | None = None,
        listeners: Listeners | None = None,
        *,
        all_at_once: bool = False,
    ) -> None:
        """With `all_at_once` every request is read, and its errors are raised, before any is served.

        Otherwise a request that cannot be served fails alone. Raises what choosing a policy raises.
        """
        if policy is not None:
            check_policy(policy, session.file, session.backend)
        self.session, self._listeners = session, listeners or Listeners()
        self._asked = session.wall.read()
        self._served: dict[int, Served] = {}
        self._tops: dict[int, int] = {}
        self._results: list[RowResult] = []
        self.failure: Exception | None = None
        rows = self._rows(requests, alone=not all_at_once)
        known = [row for row in rows if row is not None] if all_at_once else None
        if known is not None and (cut := notice_of_cut_rows(tuple(self._served.values()), session.file.spec)):
            session.on_event(Notice(cut))
        self._all_at_once, self._looked_at = all_at_once, 0
        # The gate holds a job's passes: with all that the caller's iterator refers to, nobody could drop the stream.
        self._arriving: Lender[Row | None] | None = Lender(rows if known is None else known)
        self._waiting = Waiting(self._arriving.loan(), FIRST_LOOK if policy is None else _window(policy))
        self._known = known
        self._finder = PrefixFinder() if session.shares_prefixes(policy) else None
        self._refill()
        if self._finder is not None and known is not None:
            self._finder.find(known)
        self.lengths = self._all_lengths()
        self._recorder = LogprobRecorder(self._tops, session.tokenizer)
        trace, listening = self._listeners.trace, self._listeners
        on_computed = None if trace is None else trace.on_computed
        who = (on_computed, listening.on_logits, listening.on_visit, self._recorder.on_choice)
        self._watch = Watch(*who, on_notice=lambda text: session.on_event(Notice(text)), on_place=listening.on_place)
        # Of a stream without a request that can be served nothing is run, under whatever policy.
        self.policy = self._settled(policy) if self.lengths else policy or Policy()
        self._waiting.widen(_window(self.policy))
        if self._finder is not None and not session.shares_prefixes(self.policy):
            self._share_nothing()
            if policy is None and self.lengths:  # it was chosen for rows that share
                self.policy = session.settled(self.lengths)
        self._reading_ahead = ReadingLess(session, self.policy, self.lengths)
        self.stats = Stats(session.backend.name, self.policy, rows=len(self.lengths))

    def _rows(self, requests: Iterable[RowRequest], *, alone: bool) -> Iterator[Row | None]:
        """The requests as rows. Where they fail alone, one that cannot be served becomes a result at once, and None."""
        for number, asked in enumerate(requests):
            try:
                yield self._row(asked, number)
            except FlexrefError as error:
                if not alone:
                    raise
                self._results.append(RowResult(number, None, error))
                yield None

    def _row(self, asked: RowRequest, number: int) -> Row:
        served = serve(asked, number, self.session.file.spec, self.session.tokenizer)
        self._served[number] = served
        if served.request.logprobs:
            self._tops[number] = served.request.logprobs
        return served.row

    def _settled(self, policy: Policy | None) -> Policy:
        """The policy of the job; of a stream, rows that fit under none fail alone, if any others fit under one."""
        try:
            return self.session.settled(self.lengths, policy)
        except CapacityError as error:
            if self._all_at_once:
                raise
            refused = error
        rows = sorted(self._waiting.rows, key=lambda row: row.lengths.capacity_tokens)
        found, fit, none_fit = None, 0, len(rows)
        while none_fit - fit > 1:
            some = (fit + none_fit) // 2
            try:
                found, fit = self.session.settled([row.lengths for row in rows[:some]], policy), some
            except CapacityError as error:
                refused, none_fit = error, some
        if found is None:
            raise refused
        for row in rows[fit:]:
            self._fail(row, refused)
        self.lengths = self._all_lengths()
        return found

    def run(self) -> Generator[StreamedToken | None, None, None]:
        """Run all rows and yield their tokens, and None after a pass that gave none. `stats` is complete then.

        Raises `EngineError` if the engine has another job or is closed, and `KeyboardInterrupt` only where no operation
        is half done. What the requests' iterator raised is `failure` in the end.
        """
        arriving, self._arriving = self._arriving, None
        return self.session.gate.stream(self.session.wall.lent(self._passes()), partial(self._refill, arriving))

    def take_results(self) -> list[RowResult]:
        """What has ended since the last call."""
        results, self._results = self._results, []
        return results

    def _all_lengths(self) -> list[RowLengths]:
        """The lengths of all rows or, of a stream, of those that wait."""
        return [row.lengths for row in (self._waiting.rows if self._known is None else self._known)]

    def _share_nothing(self) -> None:
        """Let every row have its whole prompt to itself."""
        self._finder = None
        for row in self._waiting.rows if self._known is None else self._known:
            row.share(None)
        self.lengths = self._all_lengths()

    def _refill(self, arriving: Lender[Row | None] | None = None) -> None:
        """Take more requests, of `arriving`: the caller's own code, which runs while nothing of the engine does."""
        try:
            self._waiting.refill()
        except Exception as error:
            self.failure = error  # what has arrived is still served
        if self._finder is not None and self._known is None and self._waiting.arrivals > self._looked_at:
            self._looked_at = self._waiting.arrivals
            self._finder.find(self._waiting.rows)

    def _passes(self) -> Generator[Sequence[StreamedToken | None], None, None]:
        # Those that arrived since a policy was chosen may share something with those that it was chosen for.
        looked_at = self._all_lengths()[: len(self.lengths)]
        planned = self._planned(looked_at) or (yield from self._next_planned())
        if planned is None:
            return
        self.session.rehearsals.of(planned, self.policy.row_invariant)
        with self.session.job(self.stats, self._asked, self._listeners.trace) as account:
            while planned is not None:
                yield from self._block(planned, account)
                planned = yield from self._next_planned()
            self.stats.rows = self._waiting.arrivals

    def _next_planned(self) -> Generator[Sequence[StreamedToken | None], None, PlannedBlock | None]:
        """A block for what waits when the iterator has been asked for more; None if nothing waits and nothing comes."""
        planned = None
        while planned is None and not self._waiting.come_to_an_end:
            yield [None]
            planned = self._planned([row.lengths for row in self._waiting.rows])
        return planned

    def _planned(self, lengths: Sequence[RowLengths]) -> PlannedBlock | None:
        """A block for the rows that wait, or as many of them as fit; None if there are none."""
        while lengths:
            try:
                return self.session.planned(self.policy, lengths)
            except CapacityError as error:
                found = self._reading_less(lengths) or self._without_sharing(lengths)
                if found is not None:
                    return found
                if self._all_at_once:
                    raise
                if len(lengths) > 1:
                    lengths = lengths[: len(lengths) // 2]
                    continue
                self._fail(self._waiting.rows[0], error)
                lengths = [each.lengths for each in self._waiting.rows]
        return None

    def _reading_less(self, lengths: Sequence[RowLengths]) -> PlannedBlock | None:
        """The block for rows that fit if less is read ahead from disk than rows before them left room for; else None.

        What a caller asks for who has all rows at hand is not changed.
        """
        found = None if self._all_at_once else self._reading_ahead.planned(self.policy, lengths)
        if found is not None:
            self.policy = self.stats.policy = found[0]
        return None if found is None else found[1]

    def _without_sharing(self, lengths: Sequence[RowLengths]) -> PlannedBlock | None:
        """The block for rows that share nothing from now on, if that is what they need to fit; else None."""
        if not any(row.prefix for row in lengths):
            return None
        try:
            planned = self.session.planned(self.policy, [row.alone for row in lengths])
        except CapacityError:
            return None
        self._share_nothing()
        self.session.on_event(Notice("prefixes that prompts share are read for each of them: the device has no room"))
        return planned

    def _block(self, planned: PlannedBlock, account: Account) -> Generator[Sequence[StreamedToken | None], None, None]:
        """Run one block; yields its new tokens some stages after each pass, None where a pass had none, and adds its
        figures to `stats`.
        """
        mover, stats = self.session.mover, self.stats
        block = GenerateBlock(planned, account.weights, mover, self._waiting, self._judge, watch=self._watch)
        shape = planned.shape
        with account.memory_of(block), logged(planned, account, mover.traffic):
            before = mover.traffic.snapshot()
            marked = time.perf_counter()
            told_at = min(EVENTS_AFTER_STAGES, shape.stages - 1)
            with closing(executor.run(mover, block, shape, overlap=self.policy.overlap)) as visits:
                for visit in visits:
                    if shape.ends_pass(visit):
                        account.check_weights()
                        now, fed = time.perf_counter(), block.take_fed()
                        account.count_pass(fed, planned.places, now - marked)
                        if not fed.generated_tokens:
                            add_bytes(stats.prefill_link_bytes, mover.traffic.since(before))
                        said = visit.pass_number, fed.rows, fed.prompt_tokens, now - marked
                        LOG.debug("pass %d ends: rows %d, prompt tokens %d, %.4f s", *said)
                        marked, before = now, mover.traffic.snapshot()
                        block.tell_watch()
                    if visit.stage == told_at and visit.group == 0:
                        yield self._streamed(block) or [None]
            yield self._streamed(block)
            stats.replayed_visits += block.replayed_visits
            stats.decode_s += time.perf_counter() - marked

    def _judge(self, row: Row) -> str | None:
        """Why a row ends with its latest token; None if it does not."""
        return self._served[row.number].text.push(row.tokens[-1])

    def _streamed(self, block: GenerateBlock) -> list[StreamedToken]:
        """The tokens since the last call, each with the text that it adds to its row."""
        tokens = []
        for event in block.take_events():
            self.stats.generated_tokens += 1
            served = self._served[event.row]
            text, reason = served.text, event.finish_reason
            if reason is not None:
                reason = text.finish(reason)
            shown, text.shown = text.text[text.shown :], len(text.text)
            tokens.append(StreamedToken(event.row, event.token_id, shown, reason))
            if reason is not None:
                known = self._recorder.take(event.row) if served.request.logprobs else None
                self._results.append(RowResult(event.row, served.output(reason, known)))
                self._forget(served.row)
        return tokens

    def _fail(self, row: Row, error: FlexrefError) -> None:
        """A row that waits fails alone."""
        self._waiting.drop(row)
        self._forget(row)
        self._results.append(RowResult(row.number, None, error))

    def _forget(self, row: Row) -> None:
        del self._served[row.number]
        self._tops.pop(row.number, None)


def _window(policy: Policy) -> int:
    return WINDOWS * policy.rows_per_block
