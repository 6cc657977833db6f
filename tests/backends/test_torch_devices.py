"""The port to PyTorch on devices that are not here: which it takes, what it promises and calls; stand-ins answer it."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import flexref_torch
import numpy as np
import pytest

from flexref.errors import BackendUnavailable, CapacityError
from flexref.units import ALIGNMENT_BYTES, MIB

torch = pytest.importorskip("torch")

FREE_BYTES, KEPT_BYTES = 1000, 200


class Runtime:
    """CUDA's runtime, as far as the port calls it: what is pinned, and whether anything can be."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.status = 0

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if not nbytes:
            return 1
        if not self.status:
            self.pinned[address] = nbytes
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        return 1 if self.pinned.pop(address, None) is None else 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Two CUDA devices are here, of which nothing can be computed on."""
    found, cuda = Runtime(), torch.cuda
    properties = SimpleNamespace(name="A device", total_memory=16)
    for name, answer in {
        "device_count": lambda: 2,
        "get_device_properties": lambda number: properties,
        "mem_get_info": lambda device: (FREE_BYTES, 2 * FREE_BYTES),
        "memory_reserved": lambda device: 3 * KEPT_BYTES,
        "memory_allocated": lambda device: 2 * KEPT_BYTES,
        "Stream": lambda device: object(),
        "cudart": lambda: found,
    }.items():
        monkeypatch.setattr(cuda, name, answer)
    return found


def test_cuda_is_taken_where_it_is_and_promises_what_it_can(runtime: Runtime) -> None:
    port: Any = flexref_torch.TorchBackend()
    caps = port.caps
    assert (str(port._device), caps.compute_dtype, caps.overlaps_copies) == ("cuda:0", "float16", True)
    assert (caps.attends_on_host, caps.one_memory, caps.scratch_bytes) == (False, False, 288 * MIB)
    assert port.describe().devices == ("A device, 16 bytes",) * 2
    assert str(flexref_torch.TorchBackend(1)._device) == str(flexref_torch.TorchBackend("cuda:1")._device) == "cuda:1"
    assert str(flexref_torch.TorchBackend("cpu")._device) == "cpu"
    with pytest.raises(BackendUnavailable, match=r"'cuda:2' is not here; PyTorch .* has {'cuda': 2, 'cpu': 1}"):
        flexref_torch.TorchBackend("cuda:2")


def test_each_lane_has_a_stream_of_its_own_and_so_has_the_clock(runtime: Runtime) -> None:
    port: Any = flexref_torch.TorchBackend()
    places = [lane._stream._where()[0] for lane in port._lane_threads.values()]
    places.append(port._stream._clock._where()[0])
    assert set(Counter(map(id, places)).values()) == {1}
    again = [lane._stream._where()[0] for lane in port._lane_threads.values()]
    assert all(one is other for one, other in zip(again, places, strict=False))


def test_a_buffer_of_no_bytes_is_not_pinned(runtime: Runtime) -> None:
    """CUDA refuses to."""
    port: Any = flexref_torch.TorchBackend("cuda:1")
    buffer = port.allocate("host", 0)
    assert (buffer.nbytes, port.host_memory(buffer).size, runtime.pinned) == (0, 0, {})
    port.release(buffer)
    port.release(port.allocate("host", 0))


@pytest.mark.parametrize("step", ["mapped", "make_present"])
@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), OverflowError("too large")])
def test_what_the_system_refuses_of_host_memory_is_a_lack_of_capacity(
    step: str, error: Exception, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(f"flexref.backend.host_pages.{step}", refuse)
    port: Any = flexref_torch.TorchBackend()
    with pytest.raises(CapacityError, match="host memory is too small") as caught:
        port.allocate("host", 5000)
    assert caught.value.__cause__ is error
    assert runtime.pinned == {}


@pytest.mark.parametrize("nbytes", [1, ALIGNMENT_BYTES, 3 * MIB + 1])
def test_host_memory_is_pinned_while_it_is_there(nbytes: int, runtime: Runtime) -> None:
    port: Any = flexref_torch.TorchBackend("cuda:1")
    buffer = port.allocate("host", nbytes)
    memory = port.host_memory(buffer)
    memory[:] = 7
    assert runtime.pinned == {memory.ctypes.data: nbytes}
    assert (memory.ctypes.data % ALIGNMENT_BYTES, buffer.nbytes, bool((buffer == 7).all())) == (0, nbytes, True)
    port.release(buffer)
    assert runtime.pinned == {}
    with pytest.raises(RuntimeError, match="could not be given back: CUDA's error 1"):
        port.release(buffer)


def test_memory_that_cannot_be_had_is_a_lack_of_capacity(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    port: Any = flexref_torch.TorchBackend()
    runtime.status = 2
    kernels = []
    monkeypatch.setattr(torch, "ones", lambda *shape, device: kernels.append(device))
    with pytest.raises(CapacityError, match="host memory is too small"):
        port.allocate("host", 5000)
    assert list(map(str, kernels)) == ["cuda:0"]  # a kernel takes CUDA's note of the failure, which the next would find

    def full(*shape: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError(f"no room on {named['device']}")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CapacityError) as caught:
        port.allocate("device", 5000)
    assert (caught.value.tier, caught.value.needed_bytes) == ("device", 5000)
    assert caught.value.free_bytes == port.free_bytes("device") == FREE_BYTES + KEPT_BYTES


def test_apples_gpu_has_one_stream_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 64)
    port: Any = flexref_torch.TorchBackend()
    assert (port._device.type, port.caps.compute_dtype, port.caps.overlaps_copies) == ("mps", "float16", False)
    assert port.describe().devices == ("Apple GPU, 64 bytes",)
    assert {id(lane._stream) for lane in port._lane_threads.values()} == {id(port._stream)}
    assert port.caps.scratch_bytes == 128 * MIB


def test_what_is_uploaded_is_not_pinned_so_that_it_may_change_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    port: Any = flexref_torch.TorchBackend("cpu")
    values, given = port.host_memory(port.allocate("host", 8)), []
    monkeypatch.setattr(torch, "from_numpy", lambda array: given.append(array) or torch.tensor(array))
    port.upload(values)
    assert not np.shares_memory(values, given[0])
