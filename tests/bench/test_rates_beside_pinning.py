"""Rates that a benchmark measures on a port that pins memory beside its caller: not before that has ended."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.pinning_time import PinningTime
from flexref.bench import disk_rates, host_rate


class Settled(Exception):
    """The memory of the rate has been waited for."""


class Telling(PinningTime):
    def settle(self) -> None:
        raise Settled


class TellingPort(NumpyBackend):
    def __init__(self) -> None:
        super().__init__()
        self.pinning, self.held = Telling(), 0

    def allocate(self, tier: str, nbytes: int) -> object:
        self.held += 1
        return super().allocate(tier, nbytes)

    def release(self, buffer: object) -> None:
        self.held -= 1
        super().release(buffer)


RATES: dict[str, Callable[[NumpyBackend, Path], object]] = {
    "host": lambda port, folder: host_rate.host_memory_rate(port),
    "weights": lambda port, folder: disk_rates.weights_rate(port, __file__, [(0, 64)]),
    "spill": disk_rates.spill_rates,
}


@pytest.mark.parametrize("name", RATES)
def test_memory_is_whole_before_a_rate_is_measured(name: str, tmp_path: Path) -> None:
    port = TellingPort()
    with pytest.raises(Settled):
        RATES[name](port, tmp_path)
    assert port.held == 0
    port.close()
