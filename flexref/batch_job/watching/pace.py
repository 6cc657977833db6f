"""How fast a batch job goes, now and over all, and when it will end; it knows no clock but the states' own."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from flexref.batch_job.states import JobEvent, JobFacts, JobState

NOW_S = 30.0
"""What is said of now is of so many seconds, or of the latest pass where that took longer."""

RECENT_S = 300.0
"""The time that is left follows from the tokens per second of so many seconds: phases of blocks differ."""

SAMPLES = 30
"""Of a window of states so many are kept."""

PASSES_LEAST = 2
"""The first pass reads prompts: after it alone nothing is said of the time that is left."""

SOME = 0.1
"""If there are no more lines than places, the time that is left is measured from this share of them on."""


class StateWindow:
    """States of the last `seconds` of a job, thinned out."""

    def __init__(self, seconds: float, start: JobState) -> None:
        self._seconds, self._states = seconds, deque([start])

    def add(self, state: JobState) -> JobState:
        """Note a state; the one to compare it with, `seconds` before or else the pass or the beginning before that."""
        states = self._states
        while len(states) > 1 and states[1].at_s <= state.at_s - self._seconds:
            states.popleft()
        first = states[0]
        if state.at_s - states[-1].at_s >= self._seconds / SAMPLES:
            states.append(state)
        return first


@dataclass(frozen=True, slots=True)
class Speed:
    """What states say when they are held beside each other.

    `now` is of `NOW_S`. `left_s` is measured or, with `left_is_predicted`, what the prediction leaves; None: unknown.
    `link_shares`: of the machine's rate, where that is known.
    """

    tokens_per_s_now: float
    tokens_per_s: float
    read_tokens_per_s_now: float
    read_tokens_per_s: float
    left_s: float | None
    left_is_predicted: bool
    occupancy: float
    lane_shares: Mapping[str, float]
    link_bytes_per_s: Mapping[str, float]
    link_shares: Mapping[str, float]


class View(NamedTuple):
    """What is to be known of a job at one moment. It never changes: any thread may keep it."""

    facts: JobFacts
    state: JobState
    before: JobState
    """`NOW_S` before."""
    earlier: JobState
    """`RECENT_S` before."""
    start: JobState
    """When the first pass began: before that weights were loaded."""
    told_s: float
    """When the state was told, on the clock of whoever keeps it."""
    event: JobEvent | None = None
    """The latest."""

    def at_s(self, now_s: float) -> float:
        """Seconds since the job began, at a second of that clock."""
        return self.state.at_s + now_s - self.told_s

    def left_s(self, since: JobState) -> float | None:
        """Seconds until all lines are done, at the tokens per second since another state; None: that says nothing yet.

        Lines take as many tokens as those that are done, on average. Of a live row half is done, on average.
        """
        facts, state = self.facts, self.state
        if facts.lines is None:
            return None
        left, done = facts.lines - state.lines_done, state.lines_done - facts.lines_before
        if left <= 0:
            return 0.0
        enough = SOME * (left + done)
        if state.places:  # else passes are those of other processes
            enough = min(state.places, enough)
        if done < max(1.0, enough) or (state.places and state.passes < PASSES_LEAST):
            return None
        half_done = min(state.live_rows, left) / 2
        tokens, seconds = state.generated_tokens, state.at_s - self.start.at_s
        rate = _over(tokens - since.generated_tokens, state.at_s - since.at_s) or _over(tokens, seconds)
        whole_s = tokens / rate if rate else seconds  # what is done took so long, or would now
        return whole_s * (left - half_done) / (done + half_done)

    def speed(self) -> Speed:
        """What it says of rates and times; takes some ten microseconds."""
        state, before, facts = self.state, self.before, self.facts
        seconds, since_start_s = state.at_s - before.at_s, state.at_s - self.start.at_s
        measured_s = self.left_s(self.earlier)
        predicted_s = None if facts.predicted_s is None else facts.predicted_s - since_start_s
        is_predicted = measured_s is None and predicted_s is not None and predicted_s > 0
        links = {
            link: _over(sum(kinds.values()) - sum(before.link_bytes.get(link, {}).values()), seconds)
            for link, kinds in state.link_bytes.items()
        }
        rates = facts.rates or {}
        return Speed(
            tokens_per_s_now=_over(state.generated_tokens - before.generated_tokens, seconds),
            tokens_per_s=_over(state.generated_tokens, since_start_s),
            read_tokens_per_s_now=_over(state.prompt_tokens - before.prompt_tokens, seconds),
            read_tokens_per_s=_over(state.prompt_tokens, since_start_s),
            left_s=predicted_s if is_predicted else measured_s,
            left_is_predicted=is_predicted,
            occupancy=_over(state.live_rows, state.places),
            lane_shares={
                lane: min(1.0, _over(busy_s - before.lane_busy_s.get(lane, 0.0), seconds))
                for lane, busy_s in state.lane_busy_s.items()
            },
            link_bytes_per_s=links,
            link_shares={link: rate / rates[link] for link, rate in links.items() if rates.get(link)},
        )


class JobPace:
    """Keeps what a `View` needs. `view` is None before the job begins. Events may come from any thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.view: View | None = None
        self._event: JobEvent | None = None
        self._clock, self._changing = clock, threading.Lock()

    def begin(self, facts: JobFacts) -> None:
        """From here on states are of this job."""
        start = JobState(0.0, lines_done=facts.lines_before)
        self.view = View(facts, start, start, start, start, self._clock())

    def passed(self, state: JobState) -> None:
        """The latest state."""
        view = self.view
        assert view is not None
        if view.state is view.start:
            start = replace(view.start, at_s=max(0.0, state.at_s - state.working_s))
            self._now, self._recent = StateWindow(NOW_S, start), StateWindow(RECENT_S, start)
            view = view._replace(start=start)
        new = view._replace(
            state=state, before=self._now.add(state), earlier=self._recent.add(state), told_s=self._clock()
        )
        with self._changing:
            self.view = new._replace(event=self._event)

    def happened(self, event: JobEvent) -> None:
        """The latest event."""
        with self._changing:
            self._event = event
            if self.view is not None:
                self.view = self.view._replace(event=event)

    def end(self, state: JobState, ending: str) -> None:
        """The last state."""
        if self.view is not None:
            self.passed(state)


def _over(amount: float, by: float) -> float:
    """A rate; 0 where there is no time."""
    return amount / by if by > 0 else 0.0
