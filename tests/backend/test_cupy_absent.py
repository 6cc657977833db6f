"""What a user reads where CUDA is not here, too old, or out of memory: one line each; no device is needed for it."""

import builtins
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flexref_cupy import starting
from flexref_cupy.driver import cuda
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.memory import host_buffer
from flexref_cupy.pinning import Pinning

from flexref.backend import registry
from flexref.errors import BackendUnavailable, CapacityError


class CudaRuntimeError(RuntimeError):
    """What CuPy raises for a call that fails."""


class FakeRuntime(SimpleNamespace):
    """CUDA's runtime on a machine with one T4 and a fitting driver, unless told otherwise."""

    CUDARuntimeError = CudaRuntimeError
    streamNonBlocking = 1

    def __init__(self, **changes: Any) -> None:
        defaults: dict[str, Any] = {"driver": 13000, "runtime": 13000, "devices": 1, "capability": (7, 5)}
        super().__init__(**{**defaults, **changes})

    def driverGetVersion(self) -> int:
        return self.driver  # type: ignore[no-any-return]

    def runtimeGetVersion(self) -> int:
        return self.runtime  # type: ignore[no-any-return]

    def getDeviceCount(self) -> int:
        if self.devices is None:
            raise CudaRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.devices  # type: ignore[no-any-return]

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        major, minor = self.capability
        return {
            "major": major,
            "minor": minor,
            "name": b"Tesla T4\0\0",
            "multiProcessorCount": 40,
            "totalGlobalMem": 16,
        }

    def setDevice(self, device: int) -> None:
        pass

    def free(self, address: int) -> None:
        pass

    def memGetInfo(self) -> tuple[int, int]:
        return 1 << 20, 1 << 30

    def streamCreateWithFlags(self, flags: int) -> int:
        return 1

    def malloc(self, nbytes: int) -> int:
        raise CudaRuntimeError("cudaErrorMemoryAllocation: out of memory\nand a second line")

    def hostRegister(self, address: int, nbytes: int, flags: int) -> None:
        raise CudaRuntimeError("cudaErrorMemoryAllocation: out of memory")


def made(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Cuda:
    """The port's calls on such a machine."""
    monkeypatch.setattr(cuda, "_libraries", lambda: (FakeRuntime(**changes), None))
    monkeypatch.setattr(cuda, "_load_driver", lambda driver: None)
    monkeypatch.setattr(cuda, "cupy_version", lambda: "14.2")
    monkeypatch.setattr(cuda, "Nvrtc", lambda: SimpleNamespace(number="13.2"))
    monkeypatch.setattr(cuda, "Compiler", lambda capability, compiler: None)
    monkeypatch.setattr(cuda, "Cublas", lambda stream: None)
    monkeypatch.setattr(cuda, "CublasLt", lambda stream: None)
    return Cuda()


def test_a_machine_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch)
    assert (found.name, found.capability, found.multiprocessors) == ("Tesla T4", (7, 5), 40)


def test_the_port_names_its_devices_and_what_computes_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, driver=13010, devices=2)
    assert found.devices() == ("Tesla T4, 16 bytes",) * 2
    assert found.versions() == {"cupy": "14.2", "cuda": "13.0", "driver_cuda": "13.1", "nvrtc": "13.2"}


def test_without_cupy_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    really_import = builtins.__import__

    def without_cupy(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("cupy", "cupy_backends"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return really_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(
        BackendUnavailable, match=r"No module named 'cupy_backends.*'\.\[cuda13\]'.*'\.\[cuda12\]'"
    ) as found:
        registry.create("cupy")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"driver": 0}, r"no NVIDIA driver is loaded"),
        ({"driver": 12020}, r"knows CUDA 12\.2 at most, CuPy needs CUDA 13 \(driver 580 or later\).*cuda12"),
        ({"devices": None}, r"cannot be used \(cudaErrorNoDevice.*nvidia-smi"),
        ({"devices": 0}, r"device 0 was asked for, 0 CUDA devices are here"),
        ({"capability": (7, 0)}, r"Tesla T4 has compute capability 7\.0, needed 7\.5 or later"),
    ],
)
def test_a_machine_that_does_not_fit_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], needed: str
) -> None:
    with pytest.raises(BackendUnavailable, match=needed) as found:
        made(monkeypatch, **changes)
    assert "\n" not in str(found.value)


def test_a_device_out_of_memory_says_how_much_was_asked_and_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match=r"device memory is too small.*3\.00 MiB, 1\.00 MiB is free") as found:
        made(monkeypatch).allocate(3 << 20)
    assert "\n" not in str(found.value)


def test_a_recording_that_finds_no_memory_when_it_first_runs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(status: int) -> None:
        def fails(executable: int, stream: int) -> None:
            error = CudaRuntimeError("cudaErrorOfThisNumber: the first line\nand a second line")
            error.status = status  # type: ignore[attr-defined]
            raise error

        made(monkeypatch, graphLaunch=fails).launch_graph(7)

    with pytest.raises(CapacityError, match=r"a recording.*the first line") as found:
        launch(2)
    assert "\n" not in str(found.value)
    with pytest.raises(CudaRuntimeError):  # what has failed on the device is no matter of memory
        launch(719)


def test_memory_that_cannot_be_pinned_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match=r"pinned memory.*--host-mem-gib.*ulimit -l") as found:
        host_buffer(Pinning(made(monkeypatch)), 5000)
    assert "\n" not in str(found.value)


def test_the_first_call_of_the_driver_does_not_import_all_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    linked = SimpleNamespace(_log=said.append)
    monkeypatch.setitem(sys.modules, "cupy_backends", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda", SimpleNamespace(_softlink=linked))
    cuda._load_driver(SimpleNamespace(ctxGetCurrent=lambda: linked._log("loaded")))
    linked._log("later")
    assert said == ["later"]


def test_a_device_is_started_with_its_context_as_far_as_the_driver_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(**fails: int) -> list[str]:
        called: list[str] = []

        def call(name: str) -> Callable[..., int]:
            return lambda *_: called.append(name) or fails.get(name, 0)

        names = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain")
        driver = SimpleNamespace(**{name: call(name) for name in names})
        monkeypatch.setattr(starting.ctypes, "CDLL", lambda name: driver)
        starting.begin()
        return called

    assert started() == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert started(cuInit=100) == ["cuInit"]
    assert started(cuDeviceGet=101) == ["cuInit", "cuDeviceGet"]

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(starting.ctypes, "CDLL", missing)
    starting.begin()
