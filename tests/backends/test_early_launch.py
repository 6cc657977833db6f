"""What the CUDA port tells the driver of a launch, with a driver that starts nothing in its place."""

import ctypes
from typing import Any

import pytest
from flexref_cupy.driver import kernel_source
from flexref_cupy.driver.early_launch import EARLY_CAPABILITY, EarlyLaunch, launches

STREAM, FUNCTION, ARGUMENTS = 0x7777, 0x1234, 0x5678

PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""Its number among CUDA's launch attributes (cuda.h)."""


class Driver:
    """Answers as CUDA's driver does, and keeps what it was told, as the words of the structures in cuda.h."""

    CUDADriverError = RuntimeError

    def __init__(self, status: int = 0) -> None:
        self.status, self.started = status, []

    def launchKernel(self, *arguments: int) -> None:
        """Of CuPy's driver: one that waits for the kernel before it."""
        self.started.append(arguments)

    @property
    def cuLaunchKernelEx(self) -> Any:
        """Of CUDA's library: (words of the configuration, words of its first attribute, the other arguments)."""

        def call(config: int, *others: object) -> int:
            words = (ctypes.c_uint * 14).from_address(config)
            pointers = (ctypes.c_ulonglong * 3).from_address(config + 32)
            attribute = (ctypes.c_int * 3).from_address(pointers[1])
            self.started.append((list(words[:7]), pointers[0], words[12], list(attribute), others))
            return self.status

        return call


class Function:
    """A function of a library, which ctypes lets have types of arguments."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> int:
        return int(self.call(*arguments))


def early(driver: Driver) -> EarlyLaunch:
    """An early launch by this driver."""

    def check(status: int) -> None:
        if status:
            raise driver.CUDADriverError(status)

    library = type("Library", (), {"cuLaunchKernelEx": Function(driver.cuLaunchKernelEx)})()
    return EarlyLaunch(library, STREAM, check)


def test_an_early_launch_says_grid_block_memory_stream_and_that_it_may_begin_before_the_last_one_has_ended() -> None:
    driver = Driver()
    start = early(driver)
    start(FUNCTION, (7, 5, 3), 128, 1024, ARGUMENTS)
    start(FUNCTION, (1, 1, 1), 32, 0, ARGUMENTS)
    attribute, others = [PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1], (FUNCTION, None, ARGUMENTS)
    assert driver.started == [
        ([7, 5, 3, 128, 1, 1, 1024], STREAM, 1, attribute, others),
        ([1, 1, 1, 32, 1, 1, 0], STREAM, 1, attribute, others),
    ]


def test_a_launch_that_the_driver_refuses_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="701"):
        early(Driver(status=701))(FUNCTION, (1, 1, 1), 32, 0, ARGUMENTS)


def test_older_devices_start_a_kernel_when_the_last_one_has_ended() -> None:
    driver = Driver()
    assert EARLY_CAPABILITY > (8, 9)
    for launch in launches(driver, (8, 9), STREAM):
        launch(FUNCTION, (7, 5, 3), 128, 1024, ARGUMENTS)
    assert driver.started == 2 * [(FUNCTION, 7, 5, 3, 128, 1, 1, 1024, STREAM, 0, ARGUMENTS)]


def test_a_kernel_that_does_not_wait_for_those_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'extern "C" __global__ void hasty(float* x) {\n    x[0] = 1;\n}\n// await_earlier();'
    monkeypatch.setattr(kernel_source, "_text", lambda name: text)
    with pytest.raises(ValueError, match=r"kernel hasty never calls await_earlier\(\)"):
        kernel_source.source("hasty", {}, "// nothing in common")
