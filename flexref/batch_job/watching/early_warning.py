"""Names a link that has become slow, and what that does to the finishing time; it knows no disk and no job.

A link's copies of some seconds are held against what copies of that size should take: by the machine's curves, with
other work beside them, or else by the best minute of copies of that size so far. Seconds are those in which the link
was at work: one that waits for nothing to do is not slow.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flexref.backend.protocol import Lane
from flexref.batch_job.states import JobFacts, JobState, Watcher
from flexref.batch_job.watching.pace import JobPace
from flexref.batch_job.watching.state_line import rate_said
from flexref.errors import duration
from flexref.machine.machine import RESOURCES, WEIGHT_FILE, Machine
from flexref.units import LINKS

LINKS_BY_TROUBLE = sorted(LINKS, key=lambda link: "disk" not in link)
"""The disk's first."""

SLOT_S = 3.0
"""Rates are looked at once in so many seconds, or passes that take longer."""

SLOW_SHARE, SLOW_S = 0.5, 60.0
"""A link is named when it has been below this share of its rate for so long, all slots in which it was at work."""

TURN_S = 0.005
"""A copy that Python starts may wait for its turn so long (`sys.getswitchinterval`), which is no sign of a slow link.
Copies that should take less than half of it, without what they wait, say nothing."""

BUSY_SHARE = 0.05
"""A link that is at work for less of the time is not looked at: were it twice as fast, nobody would notice."""


class Copied(NamedTuple):
    """Copies of one link and kind that have ended: how many, their bytes, their seconds."""

    copies: int
    nbytes: int
    seconds: float

    def minus(self, other: "Copied") -> "Copied":
        """Those since `other`."""
        return Copied(self.copies - other.copies, self.nbytes - other.nbytes, self.seconds - other.seconds)


NONE = Copied(0, 0, 0.0)

Tell = Callable[[str, str, Mapping[str, Any]], None]
"""Told of an event: its kind, its text and its details (`JobEvent`)."""

Flows = Mapping[tuple[str, str], Copied]


def copied(state: JobState) -> dict[tuple[str, str], Copied]:
    """All copies of a run that have ended, by link and kind."""
    return {
        (link, kind): Copied(count, state.timed_bytes[link][kind], state.link_s[link][kind])
        for link, kinds in state.timed_copies.items()
        for kind, count in kinds.items()
    }


class MachineRates:
    """Seconds that a machine's file says copies take, beside whatever else slows them down there.

    waiting_s: what these may contain, for every copy, of waiting for its turn.
    """

    waiting_s = 0.0

    def __init__(self, machine: Machine) -> None:
        self.source = f"machine {machine.name}"
        self._copies = machine.copies
        self._beside = {link: max(machine.slowdown(link, other) for other in RESOURCES) for link in LINKS}

    def seconds(self, link: str, kind: str, some: Copied) -> float | None:
        """What these copies should take; None if nothing is known of such."""
        name = WEIGHT_FILE if (link, kind) == ("disk->host", "weights") else link
        return float(some.copies * self._copies[name].seconds(some.nbytes / some.copies)) * self._beside[link]

    def learn(self, flows: Flows, slot_s: float) -> None:
        """Nothing: all is known."""


class BestRates:
    """Seconds that copies of a size took in their best minute so far; of the disk alone, since the rate of other links
    depends on what the processor does meanwhile. waiting_s: see `MachineRates`.
    """

    source = "its best minute so far"
    waiting_s = TURN_S

    def __init__(self) -> None:
        self._best: dict[tuple[str, str, int], float] = {}
        self._minutes: dict[tuple[str, str, int], deque[tuple[Copied, float]]] = {}

    def seconds(self, link: str, kind: str, some: Copied) -> float | None:
        """What these copies should take; None if nothing is known of such."""
        best = self._best.get((link, kind, _octave(some)))
        return None if best is None else some.nbytes * best

    def learn(self, flows: Flows, slot_s: float) -> None:
        """Copies of one more slot of so many seconds."""
        for (link, kind), some in flows.items():
            if "disk" not in link:
                continue
            key = link, kind, _octave(some)
            minute = self._minutes.setdefault(key, deque())
            minute.append((some, slot_s))
            if sum(seconds for _, seconds in minute) >= SLOW_S:
                per_byte = sum(slot.seconds for slot, _ in minute) / sum(slot.nbytes for slot, _ in minute)
                self._best[key] = min(per_byte, self._best.get(key, per_byte))
                minute.popleft()


@dataclass(slots=True)
class Suspicion:
    """How long a link has been slow, from which state on, and what was left then; `named`: that was said."""

    slow_s: float = 0.0
    healthy_s: float = 0.0
    since: JobState | None = None
    left_before_s: float | None = None
    seen: list[tuple[Copied, float]] = field(default_factory=list)
    named: bool = False


class EarlyWarning(Watcher):
    """Tells of a slow link once, and again only when it has been well for a minute in between."""

    def __init__(self, tell: Tell, pace: JobPace, machine: Machine | None = None) -> None:
        """`tell` takes a warning; `pace` must be told before this is. Without a machine a disk is held against its own
        best minute.
        """
        self._tell, self._pace = tell, pace
        self._rates: MachineRates | BestRates = BestRates() if machine is None else MachineRates(machine)

    def begin(self, facts: JobFacts) -> None:
        """From here on states are of this job."""
        self._last = JobState(0.0, lines_done=facts.lines_before)
        self._suspicions = {link: Suspicion() for link in LINKS_BY_TROUBLE}

    def passed(self, state: JobState) -> None:
        """Look, if it is time."""
        last, seconds = self._last, state.at_s - self._last.at_s
        if seconds < SLOT_S:
            return
        self._last, before = state, copied(last)
        if _loading_s(state) > _loading_s(last):
            return  # who reads a disk beside others waits for them, and only until weights have come
        flows = {key: some.minus(before.get(key, NONE)) for key, some in copied(state).items()}
        flows = {key: some for key, some in flows.items() if some.copies and some.nbytes}
        for link, suspicion in self._suspicions.items():
            took = _judged(link, flows, self._rates)
            if took is None or took[0].seconds < BUSY_SHARE * seconds:
                continue
            some, expected_s = took
            if (some.seconds - some.copies * TURN_S) * SLOW_SHARE > expected_s:
                self._suspect(suspicion, seconds, last)
                if suspicion.named:
                    continue
                suspicion.seen.append((some, expected_s))
                if suspicion.slow_s >= SLOW_S:
                    suspicion.named = True
                    self._tell("warning", *self._warning(link, suspicion, state))
            elif suspicion.named and suspicion.healthy_s + seconds < SLOW_S:
                suspicion.healthy_s += seconds
            else:
                self._suspicions[link] = Suspicion()
        self._rates.learn(flows, seconds)

    def _suspect(self, suspicion: Suspicion, seconds: float, last: JobState) -> None:
        suspicion.slow_s, suspicion.healthy_s = suspicion.slow_s + seconds, 0.0
        view = self._pace.view
        if suspicion.since is None and view is not None:
            before = view._replace(state=last)
            suspicion.since, suspicion.left_before_s = last, before.left_s(view.earlier)

    def _warning(self, link: str, suspicion: Suspicion, state: JobState) -> tuple[str, dict[str, Any]]:
        since, view = suspicion.since, self._pace.view
        assert since is not None
        assert view is not None
        nbytes, took_s = (sum(some[at] for some, _ in suspicion.seen) for at in (1, 2))
        rate, expected = nbytes / took_s, nbytes / sum(seconds for _, seconds in suspicion.seen)
        details = {
            "link": link,
            "bytes_per_s": rate,
            "expected_bytes_per_s": expected,
            "share": rate / expected,
            "slow_s": suspicion.slow_s,
        }
        left_now_s, effect = view.left_s(since), ""
        if left_now_s is not None:
            details["left_s"] = left_now_s
            effect = f"; at the pace of now {duration(left_now_s)} are left"
            if suspicion.left_before_s is not None:
                before_s = max(0.0, suspicion.left_before_s - (state.at_s - since.at_s))
                details["left_before_s"] = before_s
                effect += f", at the pace before it would be {duration(before_s)}"
        said = (
            f"{link} is slow: {rate_said(rate)} for {duration(suspicion.slow_s)}, {rate / expected:.0%} of "
            f"{rate_said(expected)} by {self._rates.source} for copies of this size{effect}"
        )
        return said, details


def _loading_s(state: JobState) -> float:
    """Seconds for which weights have loaded beside passes so far."""
    return state.lane_busy_s.get(Lane.LOADING.value, 0.0)


def _judged(link: str, flows: Flows, rates: MachineRates | BestRates) -> tuple[Copied, float] | None:
    """A link's copies of which something is known, and the seconds that they should take; None if there are none."""
    known = list(_known(link, flows, rates))
    if not known:
        return None
    copies, nbytes, seconds = (sum(some[at] for some, _ in known) for at in range(3))
    return Copied(int(copies), int(nbytes), seconds), sum(expected_s for _, expected_s in known)


def _known(link: str, flows: Flows, rates: MachineRates | BestRates) -> Iterator[tuple[Copied, float]]:
    for (where, kind), some in flows.items():
        expected_s = rates.seconds(link, kind, some) if where == link else None
        if expected_s is not None and expected_s >= some.copies * (rates.waiting_s + TURN_S / 2):
            yield some, expected_s


def _octave(some: Copied) -> int:
    """Copies of alike size have the same: mean bytes up to a factor of 2."""
    return int(some.nbytes / some.copies).bit_length()
