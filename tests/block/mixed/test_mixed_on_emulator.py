"""The machine of mixed jobs on the CuPy port, whose kernels an emulator runs: as late as a device, with its graphs."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test as run_machine
from mixed_kit.alone import SPEC, Alone
from mixed_kit.mixed_states import MixedStates

from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)


class EmulatedPort(CupyBackend):
    """The port with an account of its own, as the machine asks for it: see `LateRecordings` and `CountingBackend`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(cuda=EmulatedCuda(capability=(9, 0), multiprocessors=8, late=True))
        self.full, self.alive, self.live = False, set[Any](), Counter[str]()
        self._tiers: dict[int, tuple[str, int]] = {}

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        self._tiers[id(buffer)] = (tier, buffer.nbytes)
        self.live[tier] += buffer.nbytes
        return buffer

    def release(self, buffer: Any) -> None:
        tier, nbytes = self._tiers.pop(id(buffer))
        self.live[tier] -= nbytes
        super().release(buffer)

    def record(self, operators: Callable[[], None]) -> Any:
        if self.full:
            raise CapacityError("device", "recordings", 1, 0, {})
        recording = super().record(operators)
        self.alive.add(recording)
        return recording

    def replay(self, recording: Any) -> None:
        if self.full:
            raise CapacityError("device", "recordings", 1, 0, {})
        super().replay(recording)

    def forget(self, recording: Any) -> None:
        self.alive.remove(recording)
        super().forget(recording)


def test_rows_of_mixed_jobs_have_what_they_have_alone_on_an_emulated_device(model_file: Any) -> None:
    path, port = model_file(SPEC), EmulatedPort()
    with load(path, policy=Policy(), backend=port, graphs=False) as engine:
        MixedStates.path, MixedStates.alone, MixedStates.right = path, Alone(engine), None
        MixedStates.make_port = EmulatedPort
        some = max(1, settings().max_examples // 8)
        run_machine(MixedStates, settings=settings(max_examples=some, stateful_step_count=5))  # type: ignore[no-untyped-call]
