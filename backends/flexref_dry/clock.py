"""Time on a machine that is not there: lanes and operators as tasks that share links and slow each other down.

A fluid model: whatever works at the same time on one link shares it evenly, and what works beside something else takes
longer by the machine's factor for the two. The host submits; nothing is decided before the host asks for it, and then
only as far as it asks, so that what it submits later finds its place.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence


class Task:
    """Work of `work_s` seconds alone on `resource`, in its place on `lane`: not before `ready_s` nor before `after`.

    `floor_s` is a time before which it cannot end. `start_s` and `end_s` are NaN until they are known.
    """

    __slots__ = ("after", "end_s", "floor_s", "lane", "left_s", "ready_s", "resource", "start_s")

    def __init__(self, lane: str, resource: str, work_s: float, ready_s: float, after: Sequence["Task"]) -> None:
        self.lane, self.resource, self.left_s = lane, resource, work_s
        self.ready_s = max([ready_s, *(task.end_s for task in after if task.ended)])
        self.after = [task for task in after if not task.ended]
        self.floor_s = 0.0
        self.start_s: float = math.nan
        self.end_s: float = math.nan

    @property
    def ended(self) -> bool:
        """Whether its end is known; only NaN is unlike itself, and this is asked a million times."""
        return self.end_s == self.end_s


class Clock:
    """`now_s` is the host's time since the start; tasks run on lanes, each in the order in which they were added."""

    def __init__(self, beside: Mapping[str, Mapping[str, float]]) -> None:
        """`beside[a][b]`: how many times as long `a` takes while `b` works."""
        self.now_s = 0.0
        self.busy_s: dict[str, float] = {}
        self._beside = beside
        self._lanes: dict[str, deque[Task]] = {}
        self._running: list[Task] = []
        self._time_s = 0.0

    def add(self, lane: str, resource: str, work_s: float, after: Sequence[Task] = ()) -> Task:
        """A task that the host hands over now."""
        task = Task(lane, resource, work_s, self.now_s, after)
        self._lanes.setdefault(lane, deque()).append(task)
        return task

    def spend(self, seconds: float) -> None:
        """The host works on something else for a while."""
        self.now_s += seconds

    def join(self, task: Task) -> None:
        """The host waits until `task` has ended."""
        while not task.ended:
            if not self._step(math.inf):
                raise RuntimeError("a task waits for what will never happen")
        self.now_s = max(self.now_s, task.end_s)

    def has_ended(self, task: Task) -> bool:
        """Whether `task` has ended by the host's time."""
        if not task.ended and self._time_s < self.now_s:
            while self._time_s < self.now_s and self._step(self.now_s):
                pass
        return task.end_s <= self.now_s  # not, where its end is unknown: no comparison with NaN holds

    def _step(self, limit_s: float) -> bool:
        """Go to the next time at which a task starts or ends, at most to `limit_s`; False if there is none."""
        next_s = self._start_ready()
        speeds = [self._speed(task) for task in self._running]
        ends = [
            max(self._time_s + task.left_s / speed, task.floor_s)
            for task, speed in zip(self._running, speeds, strict=True)
        ]
        next_s = min([next_s, *ends])
        if math.isinf(next_s) and math.isinf(limit_s):
            return False
        next_s = min(next_s, limit_s)
        passed_s = next_s - self._time_s
        for task, speed in zip(self._running, speeds, strict=True):
            task.left_s = max(0.0, task.left_s - passed_s * speed)
        self._time_s = next_s
        for task, end_s in zip(self._running, ends, strict=True):
            if end_s <= next_s:
                task.end_s = next_s
                self._lanes[task.lane].popleft()
                self.busy_s[task.lane] = self.busy_s.get(task.lane, 0.0) + next_s - task.start_s
        self._running = [task for task in self._running if not task.ended]
        return True

    def _start_ready(self) -> float:
        """Start the first task of every lane that may run now; the next time at which the host hands one over."""
        next_s = math.inf
        for lane in self._lanes.values():
            if not lane:
                continue
            task = lane[0]
            if not math.isnan(task.start_s):
                continue
            if task.after:
                task.after = [other for other in task.after if not other.ended]
                if task.after:
                    continue
            if task.ready_s <= self._time_s:
                task.start_s = self._time_s
                self._running.append(task)
            else:
                next_s = min(next_s, task.ready_s)
        return next_s

    def _speed(self, task: Task) -> float:
        """Seconds of its work that a running task does in a second."""
        sharing, slowdown = 0, 1.0
        factors = self._beside.get(task.resource)
        seen = set()
        for other in self._running:
            if other.resource == task.resource:
                sharing += 1
            elif factors and other.resource not in seen:
                seen.add(other.resource)
                slowdown += factors.get(other.resource, 1.0) - 1.0
        return 1.0 / (sharing * slowdown)
