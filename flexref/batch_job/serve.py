"""Serves the lines of a job on one engine: their rows come and go, answers come as lines end; it knows no file.

A line may have several rows (prompts, choices). It is answered when the last of them has ended.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from flexref.batch_job.answers import LineAnswer
from flexref.block.rows import RowLengths
from flexref.engine.engine import Engine
from flexref.engine.generation import GenerationJob
from flexref.engine.request import RowRequest
from flexref.engine.results import Output, RowResult, StreamedToken
from flexref.engine.session import Session
from flexref.errors import BatchError, CapacityError, FlexrefError, PromptError
from flexref.policy import Policy


class AskedRows(Protocol):
    """A line whose requests are known, and how it is answered."""

    @property
    def number(self) -> int:
        """The line's number, from 1 on."""

    @property
    def rows(self) -> Sequence[RowRequest]:
        """One request for each of its rows."""

    def answer(self, outputs: Sequence[Output], /) -> LineAnswer:
        """What becomes of it when its rows have become `outputs`, in their order."""

    def refused(self, error: FlexrefError, /) -> LineAnswer:
        """What becomes of it if one of its rows cannot be served."""


Tokens = tuple[int, ...]

Begun = Callable[[int], Mapping[int, Tokens]]
"""For a line's number, the tokens that its rows had when a run before this one ended, by their places in the line."""

OnJob = Callable[[Engine, GenerationJob], None]
"""Told of the job on an engine. What it raises ends the job where nothing is half done."""


@dataclass(slots=True)
class OpenLine:
    """A line that is being served: what its rows have become so far, and the tokens of those that have not ended.

    Log-probabilities of those are kept nowhere: a row that is asked for them begins anew, and comes to the same.
    `set_aside`: a row of it did not fit under a policy that was chosen for others.
    """

    asked: AskedRows
    outputs: dict[int, Output] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    error: FlexrefError | None = None
    set_aside: bool = False

    def request(self, choice: int) -> RowRequest:
        """What is asked for its row number `choice`: it goes on after the tokens that it has."""
        return replace(self.asked.rows[choice], generated=tuple(self.tokens.get(choice, ())))


Place = tuple[OpenLine, int] | LineAnswer
"""What a request of an engine's stream is: a line's row, by its place there, or an answer that waits its turn."""


def nobody(engine: Engine, job: GenerationJob) -> None:
    """Nobody wants to know."""


def nothing_begun(number: int) -> Mapping[int, Tokens]:
    """No run has been before this one."""
    return {}


class Serving:
    """Lines on their way through engines: what one engine leaves, the next goes on with.

    `lines` gives lines in their order: those that are asked, and answers of those that failed before they were. No more
    of it is taken than the engine looks ahead.
    """

    def __init__(self, lines: Iterator[AskedRows | LineAnswer], begun: Begun = nothing_begun) -> None:
        self._lines, self._begun = lines, begun
        self._open: dict[int, OpenLine] = {}
        self._failed: dict[int, LineAnswer] = {}
        """Answers that wait their turn in an engine."""
        self._lines_ended = self._last = self._may_refuse = self._some_fit = False
        self._lines_failure: Exception | None = None
        self.is_running = False
        """Whether an engine had a policy and began, also when it has failed since, and another one might go on."""

    @property
    def lines_seen(self) -> int:
        """Lines that have been asked for and are not answered."""
        return len(self._open)

    @property
    def has_set_aside(self) -> bool:
        """Whether lines stayed open since they need a policy of their own: `run` has one chosen for them."""
        return any(line.set_aside for line in self._open.values())

    @property
    def unfinished(self) -> Iterator[tuple[int, int, Tokens]]:
        """(line, place of the row in it, tokens) of every row that has begun and not ended."""
        for number, line in self._open.items():
            for choice, tokens in line.tokens.items():
                if tokens and choice not in line.outputs:
                    yield number, choice, tuple(tokens)

    def run(
        self,
        engine: Engine,
        *,
        on_begin: OnJob = nobody,
        on_pass: OnJob = nobody,
        may_refuse: bool = True,
    ) -> Generator[LineAnswer, None, None]:
        """Serve lines until none is left; answers come as they end, in any order within the engine's window.

        Only lines that do not fit under a policy that was chosen for others are left over (`has_set_aside`): `run` has
        one chosen for them. Those that do not fit under that one either are refused; unless `may_refuse`, since the
        engine has less memory than the job was given, they end the job with a `BatchError`.

        `on_begin` is called before the first pass, `on_pass` after every pass. Raises what the engine raises, what
        `lines` raises once all lines before that are answered, and what those two raise. Whatever it raises, lines that
        were not answered stay open for the next `run`.
        """
        self.is_running, self._last = False, self._lines_ended and self.has_set_aside
        self._may_refuse, self._some_fit = may_refuse, False
        for line in self._open.values():
            line.set_aside = self._last
        yield from self._answered_before()
        places: dict[int, Place] = {}
        while True:
            try:
                job = GenerationJob(engine.session, self._requests(places))
                break
            except CapacityError as error:
                yield from self._none_fit(engine.session, places.values(), error)
            places.clear()
        passes = 0
        on_begin(engine, job)
        self.is_running = True
        with closing(job.run()) as tokens:
            for token in tokens:
                if token is not None and token.row in places:  # else it was the last of its row, which has ended
                    _note(places[token.row], token)
                for result in job.take_results():
                    yield from self._ended(job, places.pop(result.number), result)
                if job.stats.occupancy.passes != passes:
                    passes = job.stats.occupancy.passes
                    on_pass(engine, job)
        for result in job.take_results():
            yield from self._ended(job, places.pop(result.number), result)
        if job.failure is not None:
            self.is_running = False
            raise job.failure

    def _answered_before(self) -> Iterator[LineAnswer]:
        """Lines that failed before they were asked, those that come too unless others wait: policies are for rows."""
        while self._failed:
            yield self._failed.pop(next(iter(self._failed)))
        if self._open:
            return
        for each in self._next_lines():
            if not isinstance(each, LineAnswer):
                self._lines = chain([each], self._lines)
                return
            yield each

    def _next_lines(self) -> Iterator[AskedRows | LineAnswer]:
        """What is left of the lines. What they raise, every later call raises again: they only seem to end there."""
        if self._lines_failure is not None:
            raise self._lines_failure
        while True:
            try:
                each = next(self._lines)
            except StopIteration:
                return
            except Exception as error:
                self._lines_failure = error
                raise
            yield each

    def _none_fit(self, session: Session, places: Iterable[Place], error: CapacityError) -> Iterator[LineAnswer]:
        """No row of `places` fits. They are refused if shorter ones would: the model itself has room."""
        self._check_fits(session, session.settled([SHORTEST]))
        for place in places:
            if isinstance(place, LineAnswer):
                yield self._failed.pop(place.number)
            elif place[0].asked.number in self._open:
                line, choice = place
                refused = self._refused(line, choice, error, 0)
                del self._open[line.asked.number]
                yield line.asked.refused(refused)

    def _check_fits(self, session: Session, policy: Policy) -> None:
        """`CapacityError` if not even the shortest row fits: no line is to blame for that, and none is refused."""
        if not self._some_fit:
            try:
                session.planned(policy, [SHORTEST])
            except CapacityError:
                self.is_running = False
                raise
            self._some_fit = True

    def _refused(self, line: OpenLine, choice: int, error: FlexrefError, number: int) -> FlexrefError:
        """Why row `choice` of a line, number `number` of its stream, cannot be served, as its answer says it."""
        if isinstance(error, CapacityError) and not self._may_refuse:
            raise BatchError(
                f"line {line.asked.number} does not fit into what the job has left of its memory, some of which ran "
                f"out; give --{error.tier}-mem-gib less than is free: {error}"
            )
        return _said_of_a_line(error, line.asked.rows[choice], number)

    def _requests(self, places: dict[int, Place]) -> Iterator[RowRequest]:
        """The rows of all lines; `places` says whose they are, by their numbers in this stream."""
        number = 0
        for line in list(self._open.values()):
            for choice in range(len(line.asked.rows)):
                if choice not in line.outputs:
                    places[number] = line, choice
                    number += 1
                    yield line.request(choice)
        for each in self._next_lines():
            if isinstance(each, LineAnswer):
                # It takes the place of a request, so that it waits its turn and the window bounds these, too. No engine
                # serves what is no request.
                places[number] = self._failed[each.number] = each
                number += 1
                yield each  # type: ignore[misc]
                continue
            known = self._begun(each.number).items()
            begun = {choice: list(tokens) for choice, tokens in known if not each.rows[choice].request.logprobs}
            line = self._open[each.number] = OpenLine(each, tokens=begun)
            for choice in range(len(each.rows)):
                places[number] = line, choice
                number += 1
                yield line.request(choice)
        self._lines_ended = True

    def _ended(self, job: GenerationJob, place: Place, result: RowResult) -> Iterator[LineAnswer]:
        """A row has ended: the answer of its line, if it was the last one."""
        if isinstance(place, LineAnswer):
            yield self._failed.pop(place.number)
            return
        line, choice = place
        if result.output is not None:
            line.outputs[choice] = result.output
        else:
            assert result.error is not None
            if isinstance(result.error, CapacityError):
                self._check_fits(job.session, job.policy)
                if not self._last:
                    line.set_aside = True
                    return
            line.error = line.error or self._refused(line, choice, result.error, result.number)
            line.outputs[choice] = NOTHING
        line.tokens.pop(choice, None)
        if len(line.outputs) < len(line.asked.rows):
            return
        del self._open[line.asked.number]
        if line.error is not None:
            yield line.asked.refused(line.error)
        else:
            yield line.asked.answer([line.outputs[choice] for choice in range(len(line.outputs))])


SHORTEST = RowLengths(1, 1)
"""Of a row that a model can serve."""

NOTHING = Output("", None, [], "stop", 1)
"""In place of the output of a row that failed."""


def _note(place: Place, token: StreamedToken) -> None:
    assert not isinstance(place, LineAnswer)
    line, choice = place
    if not line.asked.rows[choice].request.logprobs:
        line.tokens.setdefault(choice, []).append(token.token_id)


def _said_of_a_line(error: FlexrefError, asked: RowRequest, number: int) -> FlexrefError:
    """Why a row failed, number `number` of its stream, in words that do not tell where it stood nor what memory was
    free: a job that is run again says the same.
    """
    if isinstance(error, CapacityError):
        return PromptError(
            f"a row with up to {asked.request.max_new_tokens} new tokens does not fit into the memory that the job has"
        )
    return PromptError(str(error).removeprefix(f"prompt {number + 1}: "))
