"""How long a machine would take: turns the port's calls into tasks on a clock; it knows shapes and no engine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flexref.backend.parts import Parts
from flexref.backend.protocol import HostWork, LaneStep, Move, Ticket
from flexref.machine.durations import Durations
from flexref.machine.machine import HOST_ATTENTION, RESOURCES, Machine
from flexref_dry.clock import Clock, Task

COMPUTE = "compute"
"""The lane, and the resource, of operators."""

HOST = "host"
"""The resource of work that the host does on a lane; nothing is known to slow it down."""


PARTS_KNOWN = 256
"""Of so many moves in parts the seconds are remembered at most."""


@dataclass(frozen=True, slots=True)
class DryTicket:
    """Done when all of `tasks` are; without a clock, as soon as it is given out.

    by_thread: those of them, and of what they come after, that a lane's thread does before the device knows the rest.
    """

    tasks: tuple[Task, ...]
    timing: "Timing | None"
    steps: int
    is_mark: bool = False
    by_thread: tuple[Task, ...] = ()

    @classmethod
    def at_once(cls, steps: int) -> "DryTicket":
        """The ticket of so many steps that take no time at time 0."""
        return cls((), None, steps)

    def wait(self) -> None:
        """See `Ticket.wait`."""
        if self.timing is not None:
            self.timing.join(self.tasks)

    def done(self) -> bool:
        """See `Ticket.done`."""
        return self.timing is None or self.timing.has_ended(self.tasks[-1])  # a lane works in order

    def times(self) -> Sequence[tuple[float, float]]:
        """See `Ticket.times`: seconds of the clock."""
        if self.timing is None:
            return [(0.0, 0.0)] * self.steps
        self.wait()
        return [(task.end_s if self.is_mark else task.start_s, task.end_s) for task in self.tasks]


class Timing:
    """The clock of one port: `operator`, `submit`, `mark` and `wait` as the protocol's, in seconds of `machine`.

    Operators between two marks or waits are one task. On an asynchronous port the host calls them ahead, one every
    `host_s.call` seconds, and none ends sooner after its call than it takes; on a synchronous one the host is where
    they are.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock = Clock({one: {other: machine.slowdown(one, other) for other in RESOURCES} for one in RESOURCES})
        self._durations = Durations(machine)
        self._known: dict[tuple[Any, ...], float] = {}
        self._known_parts: dict[tuple[str, Parts], float] = {}
        self._open: Task | None = None
        self._last: Task | None = None
        self._awaited: list[Task] = []

    @property
    def now_s(self) -> float:
        """The host's time."""
        self._settle()
        return self.clock.now_s

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds that every lane has worked."""
        return self.clock.busy_s

    def spend(self, seconds: float) -> None:
        """The host works on something else for a while."""
        self._settle()
        self.clock.spend(seconds)

    def operator(self, timed: tuple[Any, ...]) -> None:
        """A call of an operator: a method of `Durations` and its arguments."""
        self._work(self._seconds_of(timed), self.machine.host_s.call)

    def record(self, operators: int) -> None:
        """So many operators are recorded, and do not run."""
        self.clock.spend(operators * self.machine.host_s.record)

    def replay(self, operators: Sequence[tuple[Any, ...]]) -> None:
        """Operators that were recorded, one after another: for the host they are one call."""
        self.clock.spend(self.machine.host_s.replay)
        self._work(sum(map(self._seconds_of, operators)), 0.0)

    def _work(self, seconds: float, call_s: float) -> None:
        """Operators of so many seconds are called, which takes the host `call_s` where they run later."""
        clock = self.clock
        if self._open is None:
            self._open = clock.add(COMPUTE, COMPUTE, 0.0, self._awaited)
            self._awaited = []
        self._open.left_s += seconds
        if self.machine.port.asynchronous:
            clock.spend(call_s)
            self._open.floor_s = max(self._open.floor_s, clock.now_s + seconds)

    def _seconds_of(self, timed: tuple[Any, ...]) -> float:
        """What is timed, remembered."""
        seconds = self._known.get(timed)
        if seconds is None:
            seconds = self._known[timed] = self._seconds(*timed)
        return seconds

    def _seconds(self, method: str, *arguments: Any) -> float:
        return cast(float, getattr(self._durations, method)(*arguments))

    def choose(self, rows: int) -> None:
        """Tokens have been sampled: the host waits for them, and goes through the rows."""
        self.join(self._through())
        self._look_at(rows)

    def chosen(self, rows: int, ticket: "DryTicket") -> None:
        """Tokens had been sampled with the ticket: the host waits for no more than that, and goes through the rows."""
        self.join(ticket.tasks)
        self._look_at(rows)

    def _look_at(self, rows: int) -> None:
        self.clock.spend(self.machine.host_s.choice + self.machine.host_s.choice_row * rows)

    def submit(
        self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket], called: Sequence[Sequence[tuple[Any, ...]]]
    ) -> DryTicket:
        """A task for every step. `called`: what of the operators that a step calls on the lane is timed."""
        self._settle()
        self.clock.spend(self.machine.host_s.submission)
        before = cast(Sequence[DryTicket], after)
        awaited = [task for ticket in before for task in ticket.tasks]
        by_thread = [task for ticket in before for task in ticket.by_thread if not task.ended]
        tasks = []
        for step, operators in zip(steps, called, strict=True):
            resource, seconds = self._step(step, operators)
            tasks.append(self.clock.add(lane, resource, seconds, awaited))
            awaited = []
            if isinstance(step, HostWork):
                by_thread.append(tasks[-1])
        return DryTicket(tuple(tasks), self, len(steps), by_thread=tuple(by_thread))

    def _step(self, step: LaneStep, operators: Sequence[tuple[Any, ...]]) -> tuple[str, float]:
        """(resource, seconds alone on it) of one step."""
        durations = self._durations
        if isinstance(step, Move):
            source, target = step.source.buffer, step.target.buffer
            link = f"{source.tier}->{target.tier}"  # type: ignore[attr-defined]
            if step.parts is None:
                return link, durations.copy(link, step.nbytes)
            return link, self._parts_s(link, step.parts)
        if step.operators:
            return host_resource(operators), sum(map(self._seconds_of, operators))
        seconds = durations.operator("token rows", step.gathered_bytes) if step.gathered_bytes else 0.0
        if not step.nbytes:
            return HOST, seconds
        return step.link, seconds + durations.copy(step.link, step.nbytes, weights=step.kind == "weights")

    def _parts_s(self, link: str, parts: Parts) -> float:
        """Seconds of all parts one by one. All layers of a pass move the same ones, so the last ones are remembered."""
        key = link, parts
        if key not in self._known_parts:
            if len(self._known_parts) >= PARTS_KNOWN:
                self._known_parts.clear()
            self._known_parts[key] = sum(self._durations.copy(link, nbytes) for _, _, nbytes in parts.each)
        return self._known_parts[key]

    def mark(self) -> DryTicket:
        """Everything that was called so far."""
        return DryTicket(self._through(), self, 1, is_mark=True)

    def wait(self, ticket: Ticket) -> None:
        """Operators from now on start when `ticket` is done.

        A device can wait for what it knows. It is told of what comes after work on the host once that has been done,
        and until then the host waits: it is not ahead of such a visit, and calls what follows it late.
        """
        self._close()
        found = cast(DryTicket, ticket)
        if self.machine.port.asynchronous:
            self.join(found.by_thread)
        self._awaited += found.tasks

    def join(self, tasks: Sequence[Task]) -> None:
        """The host waits for tasks."""
        self._close()
        for task in tasks:
            self.clock.join(task)

    def has_ended(self, task: Task) -> bool:
        """Whether a task has ended by now."""
        if self._open is not None or not self.machine.port.asynchronous:
            self._settle()
        return self.clock.has_ended(task)

    def _through(self) -> tuple[Task, ...]:
        """A task that ends when everything that was called so far has ended."""
        if self._open is None:
            self._open = self.clock.add(COMPUTE, COMPUTE, 0.0, self._awaited)
            self._awaited = []
        self._close()
        assert self._last is not None
        return (self._last,)

    def _close(self) -> None:
        """The operators so far are one task."""
        if self._open is not None:
            self._last, self._open = self._open, None

    def _settle(self) -> None:
        """The host does something else than call operators: where those are synchronous, they have ended by now."""
        self._close()
        if not self.machine.port.asynchronous:
            for task in (*self._awaited, *([] if self._last is None else [self._last])):
                if math.isnan(task.end_s) or task.end_s > self.clock.now_s:
                    self.clock.join(task)


def host_resource(operators: Sequence[tuple[Any, ...]]) -> str:
    """The resource of `append` and `attend` on the host, by the one scheme of the caches that they are called for."""
    (scheme,) = {timed[1][1] if timed[0] == "attend_sums" else timed[2] for timed in operators}
    return HOST_ATTENTION[scheme]
