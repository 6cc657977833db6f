"""The memory of a measurement, on a port that pins it beside its caller."""

import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.pinning_time import PinningTime
from flexref.backend.protocol import Buffer
from flexref.errors import CapacityError
from flexref.profile.operands import Memory


class Refused(PinningTime):
    """What is given out is refused when it is waited for."""

    def settle(self) -> None:
        raise CapacityError("host", "pinned memory", 64, 0, {}, "pinned memory was refused (by a test)")


class RefusingPort(NumpyBackend):
    def __init__(self) -> None:
        super().__init__()
        self.pinning, self.held = Refused(), list[Buffer]()

    def allocate(self, tier: str, nbytes: int) -> Buffer:
        buffer: Buffer = super().allocate(tier, nbytes)
        self.held.append(buffer)
        return buffer

    def release(self, buffer: Buffer) -> None:
        super().release(buffer)
        self.held.remove(buffer)


def test_memory_whose_rest_is_refused_is_given_back() -> None:
    """Else whatever is measured next would wait for it in vain, too."""
    port = RefusingPort()
    with pytest.raises(CapacityError, match="was refused"), Memory(port, {"host": 1 << 20}) as memory:
        memory.buffer("host", 64)
    assert not port.held
    port.close()
