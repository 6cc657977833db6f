"""Lanes as threads: copies and disk reads that run beside the operators; they know no operator."""

import queue
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import HostWork, LaneStep, Span, Ticket


class LaneTicket:
    """The steps of one submission; a failure, its own or one that it waited for, is raised by `wait`."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._times: list[tuple[float, float]] = []

    def finish(self, times: list[tuple[float, float]], error: BaseException | None) -> None:
        """Called once by the lane."""
        self._times, self._error = times, error
        self._done.set()

    def wait(self) -> None:
        """Block until done; raises what the steps raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        """See `Ticket.done`."""
        return self._done.is_set()

    def times(self) -> Sequence[tuple[float, float]]:
        """(start, end) in seconds of every step that ran."""
        self._done.wait()
        return self._times


def run_step(step: LaneStep) -> tuple[float, float]:
    """Do one step now; its start and end in seconds."""
    start = time.perf_counter()
    if isinstance(step, HostWork):
        step.call()
    elif step.parts is None:
        np.copyto(pieces_of(step.target), pieces_of(step.source))
    else:
        source, target = (bytes_of(span.buffer, span.offset, span.nbytes) for span in (step.source, step.target))
        for there, here, nbytes in step.parts.each:
            target[here : here + nbytes] = source[there : there + nbytes]
    return start, time.perf_counter()


def pieces_of(span: Span) -> npt.NDArray[np.uint8]:
    """The pieces of a span as rows, (count, nbytes)."""
    whole = bytes_of(span.buffer, span.offset, span.end - span.offset)
    return np.lib.stride_tricks.as_strided(whole, (span.count, span.nbytes), (span.stride, 1))


def bytes_of(buffer: object, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The named bytes of a buffer of this port; asking beyond its end is a bug and raises."""
    assert isinstance(buffer, np.ndarray)
    if offset < 0 or offset + nbytes > buffer.nbytes:
        raise IndexError(f"bytes {offset} to {offset + nbytes} of a buffer of {buffer.nbytes}")
    return buffer[offset : offset + nbytes]


class Lane:
    """One thread that runs submissions in order; it starts with its first one. Any thread may submit."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Sequence[LaneStep], Sequence[Ticket], LaneTicket] | None] = (
            queue.SimpleQueue()
        )
        self.name = name
        self._thread = threading.Thread(target=self._run, name=f"flexref lane {name}", daemon=True)
        self._started = self._closed = False
        self._one = threading.Lock()

    def submit(self, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> LaneTicket:
        """Queue the steps; they start when `after` is done. `RuntimeError` once the lane is closed."""
        ticket = LaneTicket()
        with self._one:
            if self._closed:
                raise RuntimeError(f"lane {self.name} is closed")
            if not self._started:
                self._thread.start()
                self._started = True
            self._jobs.put((steps, after, ticket))
        return ticket

    @property
    def is_here(self) -> bool:
        """Whether the thread that asks is the lane's."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Finish what is queued and end the thread; closing again does nothing."""
        with self._one:
            self._closed = True
        if self._started:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        for steps, after, ticket in iter(self._jobs.get, None):
            _run_submission(steps, after, ticket)
            del steps, after, ticket  # a lane that waits for work holds no buffer that its last work copied


def _run_submission(steps: Sequence[LaneStep], after: Sequence[Ticket], ticket: LaneTicket) -> None:
    times: list[tuple[float, float]] = []
    try:
        for earlier in after:
            earlier.wait()
        times.extend(run_step(step) for step in steps)
    except BaseException as error:  # whatever it is belongs to the thread that waits for the ticket
        ticket.finish(times, error)
    else:
        ticket.finish(times, None)
