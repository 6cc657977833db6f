"""A job whose host memory the system refuses in part while it runs, on the emulated device: what it says and leaves."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend

from flexref.architecture.spec import ModelSpec
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy, Shares

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

SPEC = ModelSpec("small", 50, 48, 16, 16, 4, 2, 32)
ROWS = [[1, 2, 3], [4, 5, 6, 7]]
ON_HOST = Policy(weights=Shares(0, 1, 0), cache=Shares(0, 1, 0), activations=Shares(0, 1, 0))


class Refusing(EmulatedCuda):
    """Pins no piece but the first of memory, from `refuses_at` registrations on."""

    def __init__(self) -> None:
        super().__init__(capability=(9, 0), multiprocessors=8, late=True)
        self.refuses_at, self.count, self.last = 1 << 40, 0, 0

    def pin(self, address: int, nbytes: int) -> None:
        self.count += 1
        follows, self.last = address == self.last + nbytes, address
        if self.count > self.refuses_at and follows:
            raise CapacityError("host", "pinned memory", nbytes, 0, {}, "pinned memory was refused (by a test)")
        super().pin(address, nbytes)


def tokens(engine: Engine) -> Any:
    return [row.token_ids for row in engine.generate(ROWS, Request(4, ignore_eos=True)).outputs]


@pytest.mark.parametrize("refuses_at", [0, 3, 8, 20])
def test_a_job_after_one_whose_memory_was_refused_gets_other_memory(model_file: Any, refuses_at: int) -> None:
    cuda = Refusing()
    path = model_file(SPEC, dtype="float16")
    with load(path, policy=ON_HOST, backend=CupyBackend(cuda=cuda, piece_bytes=4096)) as engine:
        cuda.refuses_at = refuses_at
        with pytest.raises(CapacityError, match="pinned memory was refused") as found:
            tokens(engine)
        assert "\n" not in str(found.value)
        cuda.refuses_at = 1 << 40
        again = tokens(engine)
    assert not cuda.pinned()
    assert again == expected(path)
    await_pinning()


def test_what_was_given_out_and_is_not_there_yet_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for all that is free would be given it twice."""
    port, there = CupyBackend(cuda=EmulatedCuda(), piece_bytes=4096), threading.Semaphore(1)
    monkeypatch.setattr(port.pinning, "_touch", lambda address, nbytes: there.acquire())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    free_bytes = port.free_bytes("host")
    buffer = port.allocate("host", 10 * 4096)
    assert port.free_bytes("host") == free_bytes - 9 * 4096
    there.release(9)
    port.pinning.settle()
    assert port.free_bytes("host") == free_bytes, "now the system itself knows"
    port.release(buffer)
    port.close()


def test_a_port_that_is_closed_pins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody gives back, since Ctrl-C broke work off for good, takes no more of the machine."""
    port, there = CupyBackend(cuda=(cuda := EmulatedCuda()), piece_bytes=4096), threading.Semaphore(1)
    monkeypatch.setattr(port.pinning, "_touch", lambda address, nbytes: there.acquire())
    buffer = port.allocate("host", 10 * 4096)
    port.close()
    there.release(9)
    await_pinning()
    assert len(cuda.pinned()) == 1
    port.release(buffer)
    assert not cuda.pinned()


def await_pinning() -> None:
    """Wait until no thread pins any more."""
    deadline = time.monotonic() + 5
    while any(thread.name == "flexref pinning" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is left"
        time.sleep(0.01)


def expected(path: str) -> Any:
    with load(path, policy=ON_HOST, backend=CupyBackend(cuda=EmulatedCuda(capability=(9, 0)))) as engine:
        return tokens(engine)
