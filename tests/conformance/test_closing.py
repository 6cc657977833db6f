"""Every installed port when it is closed, and ports that are wrong on purpose about it."""

from collections.abc import Sequence

import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.lanes import Lane

from flexref.backend import registry
from flexref.backend.protocol import LaneStep, Ticket
from flexref.errors import BackendUnavailable
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work


@pytest.mark.parametrize("name", registry.installed())
def test_a_closed_port_is_done_and_takes_no_work(name: str) -> None:
    try:
        registry.create(name).close()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    a_closed_port_is_done_and_takes_no_work(lambda: registry.create(name))


class QueuesForEver(NumpyBackend):
    """Its lanes take work that nobody will do."""

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        self._lanes[lane]._closed = False
        return super().submit(lane, steps, after)


class StartsAgain(NumpyBackend):
    """Work on a closed port has a lane of its own."""

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        if self._lanes[lane]._closed:
            self._lanes[lane] = Lane(lane)
        return super().submit(lane, steps, after)


class DropsWhatIsQueued(NumpyBackend):
    """Ends its lanes without a look at their work."""

    def close(self) -> None:
        for lane in self._lanes.values():
            lane._closed = True


class ClosesOnce(NumpyBackend):
    """Does not know that it is closed."""

    def close(self) -> None:
        super().close()
        del self._results


@pytest.mark.parametrize("port", [QueuesForEver, StartsAgain, DropsWhatIsQueued, ClosesOnce])
def test_a_wrong_port_is_rejected(port: type[NumpyBackend]) -> None:
    made: list[NumpyBackend] = []

    def make() -> NumpyBackend:
        made.append(port())
        return made[0]

    with pytest.raises((AssertionError, AttributeError)):
        a_closed_port_is_done_and_takes_no_work(make)
    for lane in made[0]._lanes.values():
        lane.close()
