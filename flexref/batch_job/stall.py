"""Notices that a lane makes no progress: a disk or a network that hangs; it can end neither the read nor the job."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from flexref.engine.session import Session
from flexref.errors import in_gib
from flexref.tiers.open_work import OpenWork

LOOK_EVERY_S = 1.0
"""A look costs microseconds; it is often enough for what takes minutes."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """What a lane is in, and for how many seconds nothing has come of it."""

    work: OpenWork
    idle_s: float

    @property
    def text(self) -> str:
        """In one line."""
        work = self.work
        moved = f", {in_gib(work.nbytes)} over {work.link}" if work.link else ""
        return f"lane {work.lane} has made no progress for {self.idle_s:.0f} s: {work.what}{moved}"


class StallWatch:
    """`with StallWatch(session, stall_s, on_stall):` looks at the lanes of `session` from a thread of its own.

    `on_stall` is called in that thread, once for each call of a lane from which nothing has come for `stall_s`. A lane
    has progress when a piece of its work is done, a chunk of a weight has come, or a read that failed is tried again.
    Lanes that wait for others, for operators or for the caller are in no call, so that nothing is said of them. Time in
    which this process did not run at all does not count.
    """

    def __init__(
        self,
        session: Session,
        stall_s: float,
        on_stall: Callable[[Stalled], None],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._session, self._stall_s, self._on_stall = session, stall_s, on_stall
        self._look_every_s = look_every_s
        self._at_s = 0.0
        self._progress = -1
        self._since: dict[int, float] = {}
        self._told: set[int] = set()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flexref stall watch", daemon=True)

    def __enter__(self) -> "StallWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    def look(self, passed_s: float) -> Stalled | None:
        """Look once, `passed_s` after the last time; what has stalled the longest and was not told before."""
        self._at_s += min(passed_s, 2 * self._look_every_s)
        progress, work = self._session.progress, self._session.mover.board.now()
        known = self._since if progress == self._progress else {}
        self._progress = progress
        self._since = {each.number: known.get(each.number, self._at_s) for each in work}
        self._told &= self._since.keys()
        stalled = [
            Stalled(each, self._at_s - self._since[each.number])
            for each in work
            if self._at_s - self._since[each.number] >= self._stall_s and each.number not in self._told
        ]
        if not stalled:
            return None
        worst = max(stalled, key=lambda each: each.idle_s)
        self._told.add(worst.work.number)
        return worst

    def _run(self) -> None:
        last_s = time.monotonic()
        while not self._ends.wait(self._look_every_s):
            now_s = time.monotonic()
            found, last_s = self.look(now_s - last_s), now_s
            if found is not None:
                self._on_stall(found)
