"""Scoring on a session: rows of tokens in, log-probabilities of the tokens that are asked for out; one pass a block."""

import reprlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend
from flexref.block import executor
from flexref.block.admission import WINDOWS, Waiting
from flexref.block.planned_block import PlannedBlock
from flexref.block.prefixes import PrefixFinder
from flexref.block.rows import Row
from flexref.block.score_block import OnTile, ScoreBlock
from flexref.block.tracing.trace import Trace
from flexref.block.watch import OnHidden, Watch
from flexref.engine.account import Account
from flexref.engine.block_log import logged
from flexref.engine.events import Notice
from flexref.engine.next_tokens import Ids, NextTokens, Numbers, spread
from flexref.engine.results import Stats
from flexref.engine.session import Session
from flexref.engine.wall import WallPart
from flexref.errors import CapacityError, PolicyError, PromptError
from flexref.units import is_integer, plain_integers

GENERATION_KEYS = ("generated_tokens", "decode_s", "tokens_per_s")
"""What the account of a job says of tokens that were generated, of which there are none here."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Token ids, of which those from number `first` on are scored, each with all that stand before it as context.

    The scored ones come last: no token after a scored one is needed, and those before it are its context.
    """

    token_ids: tuple[int, ...]
    first: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", plain_integers(self.token_ids))
        object.__setattr__(self, "first", plain_integers((self.first,))[0])

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.token_ids) - self.first


@dataclass(frozen=True, slots=True)
class RowScores:
    """Of a row's S scored tokens: natural logarithms of probabilities, and what was more probable.

    logprobs (S,): of the tokens themselves. top_ids, top_logprobs (S, top): of the most probable ones, falling.
    normalizer (S,): log sum exp of all logits. logits (S, V) as the port computed them, if they were to be kept.
    """

    logprobs: Numbers
    top_ids: Ids
    top_logprobs: Numbers
    normalizer: Numbers
    greedy: npt.NDArray[np.bool_]
    """(S,): whether a token is the most probable one."""
    logits: npt.NDArray[np.float32] | None = None

    def distribution(self) -> Numbers:
        """The logarithm of the whole distribution of every scored token, (S, V), if logits were kept."""
        if self.logits is None:
            raise ValueError("the logits were not kept")
        return self.logits - self.normalizer[:, None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order of the rows, and the job's account; all of its seconds count as prefill."""

    rows: list[RowScores]
    stats: Stats
    scored_tokens: int

    def stats_to_json(self) -> dict[str, Any]:
        """The account by names, fit for `json.dumps`."""
        figures = {key: value for key, value in asdict(self.stats).items() if key not in GENERATION_KEYS}
        rate = self.stats.prompt_tokens / self.stats.prefill_s if self.stats.prefill_s else 0.0
        return {**figures, "scored_tokens": self.scored_tokens, "prompt_tokens_per_s": rate}


@dataclass(frozen=True, slots=True)
class Listener:
    """Who wants to hear of a scoring job while it runs.

    on_tile is lent every tile of logits as it comes, on_hidden given every group's hidden states (`block.watch`),
    on_rows told how many more rows have been scored; trace is told of copies and visits.
    """

    on_tile: OnTile | None = None
    on_hidden: OnHidden | None = None
    on_rows: Callable[[int], None] | None = None
    trace: Trace | None = None


def check_computes(backend: Backend) -> None:
    """`PolicyError` for a port that only counts."""
    if not backend.caps.computes:
        raise PolicyError(f"backend {backend.name} computes nothing that could be scored")


class ScoringJob:
    """One call of `Engine.score`."""

    def __init__(
        self,
        session: Session,
        rows: Sequence[ScoredRow],
        top: int,
        keep_logits: bool,
        listener: Listener,
    ) -> None:
        check_computes(session.backend)
        if isinstance(rows, ScoredRow) or not isinstance(rows, Iterable):
            raise PromptError(f"rows must be a list of ScoredRow, found {reprlib.repr(rows)}")
        rows = list(rows)
        if not rows:
            raise PromptError("there is no row to score")
        (top,) = plain_integers((top,))
        if not is_integer(top):
            raise PromptError(f"the number of most probable tokens must be a whole number, found {top!r}")
        spec = session.file.spec
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, ScoredRow):
                raise PromptError(f"row {number}: it must be a ScoredRow, found {reprlib.repr(row)}")
            _check(row, number, spec.vocabulary, spec.positions)
        self.session, self.listener = session, listener
        self._asked = session.wall.read()
        self.counts = np.array([row.scored for row in rows], np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        targets = np.concatenate([np.array(row.token_ids[row.first :], np.int64) for row in rows])
        self.next_tokens = NextTokens(targets, min(top, spec.vocabulary))
        self.logits = np.empty((len(targets), spec.vocabulary), np.float32) if keep_logits else None
        # The last token is predicted and never fed.
        self.rows = [Row(number, row.token_ids[:-1], 1, scored=row.scored) for number, row in enumerate(rows)]
        # Whoever listens to hidden states hears of every row's own tokens, all of them.
        sharing = listener.on_hidden is None and session.shares_prefixes(None)
        if sharing:
            PrefixFinder().find(self.rows)
        self.policy = session.settled([row.lengths for row in self.rows])
        if sharing and not session.shares_prefixes(self.policy):
            self._share_nothing()
            self.policy = session.settled([row.lengths for row in self.rows])  # it was chosen for rows that share
        self.stats = Stats(session.backend.name, self.policy, rows=len(rows))

    def run(self) -> Scores:
        """Score every block in order; raises what `GenerationJob.run` raises."""
        with self.session.gate.work():
            return self._run()

    def _run(self) -> Scores:
        planned = self._planned()
        self.session.rehearsals.of(planned, self.policy.row_invariant)
        with self.session.job(self.stats, self._asked, self.listener.trace) as account:
            self._block(planned, account)
        self.stats.prefill_link_bytes = self.stats.link_bytes
        return Scores(self._results(), self.stats, len(self.next_tokens.targets))

    def _planned(self) -> PlannedBlock:
        """The block for all rows; if there is no room on the device for what they share, they share nothing."""
        try:
            return self.session.planned(self.policy, [row.lengths for row in self.rows])
        except CapacityError:
            if not any(row.prefix for row in self.rows):
                raise
        self._share_nothing()
        self.session.on_event(Notice("prefixes that rows share are read for each of them: the device has no room"))
        return self.session.planned(self.policy, [row.lengths for row in self.rows])

    def _share_nothing(self) -> None:
        for row in self.rows:
            row.share(None)

    def _block(self, planned: PlannedBlock, account: Account) -> None:
        mover, trace, on_rows = self.session.mover, self.listener.trace, self.listener.on_rows
        waiting = Waiting(self.rows, WINDOWS * planned.places, in_order=True)
        waiting.refill()
        watch = Watch(None if trace is None else trace.on_computed, on_hidden=self.listener.on_hidden)
        told = on_rows or (lambda rows: None)
        block = ScoreBlock(
            planned, account.weights, mover, waiting, self.starts.tolist(), self._take, told, watch=watch
        )
        with account.memory_of(block, WallPart.PREFILL), logged(planned, account, mover.traffic):
            marked = time.perf_counter()
            with closing(executor.run(mover, block, planned.shape, overlap=self.policy.overlap)) as visits:
                for visit in visits:
                    if planned.shape.ends_pass(visit):
                        account.check_weights()
                        now = time.perf_counter()
                        account.count_pass(block.take_fed(), planned.places, now - marked)
                        marked = now
                        block.tell_watch()
                        waiting.refill()
            self.stats.prefill_s += time.perf_counter() - marked

    def _take(self, first: int, first_id: int, logits: npt.NDArray[np.float32]) -> None:
        """Logits have come."""
        self.next_tokens.push(first, first_id, logits)
        if self.logits is not None:
            self.logits[first : first + len(logits), first_id : first_id + logits.shape[1]] = logits
        if self.listener.on_tile is not None:
            self.listener.on_tile(first, first_id, logits)

    def _results(self) -> list[RowScores]:
        found = self.next_tokens
        top_ids = found.top_ids
        greedy = top_ids[:, 0] == found.targets
        columns: list[Any] = [found.logprobs, top_ids, found.top_logprobs, found.normalizer, greedy]
        if self.logits is not None:
            columns.append(self.logits)
        return [RowScores(*parts) for parts in zip(*(spread(column, self.counts) for column in columns), strict=True)]


def _check(row: ScoredRow, number: int, vocabulary: int, positions: int) -> None:
    """`PromptError` unless the row has a context, something to score, and fits the model."""
    place, length = f"row {number}", len(row.token_ids)
    if not is_integer(row.first):
        raise PromptError(f"{place}: first must be a whole number, found {row.first!r}")
    if not 1 <= row.first < length:
        raise PromptError(
            f"{place}: of {length} tokens those from number {row.first} on cannot be scored: needed at "
            f"least one, after at least one"
        )
    for token in row.token_ids:
        if not is_integer(token) or not 0 <= token < vocabulary:
            raise PromptError(f"{place}: token {token!r} is no id below {vocabulary}")
    if length - 1 > positions:
        raise PromptError(
            f"{place}: {length} tokens are too many: the model has {positions} positions, and the last token needs none"
        )
