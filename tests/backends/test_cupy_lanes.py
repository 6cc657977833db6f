"""The CUDA port's lanes, on a device that a stand-in takes the part of: what a failure leaves under way."""

from typing import Any

import numpy as np
import pytest
from flexref_cupy.lanes import Lane

from flexref.backend.protocol import HostWork, LaneStep, Move, Span


class Device:
    """Calls of `Cuda` and `Copying` that a lane makes: copies are under way until the host waits for their stream."""

    def __init__(self) -> None:
        self.under_way, self.done = list[str](), list[str]()
        self.cuda = self

    def stream(self) -> int:
        return 1

    def take(self) -> int:
        return 0

    def move(self, move: Move, stream: int) -> None:
        if move.what == "wrong":
            raise IndexError("bytes beyond a buffer")
        self.under_way.append(move.what)

    def await_stream(self, stream: int) -> None:
        self.done += self.under_way
        self.under_way.clear()

    def nothing(self, *_: Any) -> None: ...

    record = join_thread = destroy_stream = beside = nothing


@pytest.mark.parametrize("by_the_thread", [False, True])
def test_a_submission_that_fails_is_over_and_so_are_its_earlier_copies(by_the_thread: bool) -> None:
    """Whoever hears of the failure gives memory back that these copies would still write to."""
    device: Any = Device()
    lane, span = Lane("a lane", device, device), Span(np.zeros(1, np.uint8), 0, 1)
    steps: list[LaneStep] = [Move(what, span, span) for what in ("first", "second", "wrong", "not begun")]
    if by_the_thread:
        steps.insert(0, HostWork("host work", lambda: None))
    with pytest.raises(IndexError, match="beyond a buffer"):
        lane.submit(steps, ()).wait()
    assert (device.done, device.under_way) == (["first", "second"], [])
    lane.close()
