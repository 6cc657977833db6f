"""Starts kernels so that each may begin while the one before it ends, where the device can; it knows no kernel.

A kernel says itself where it needs what came before (`await_earlier` in common.cuh), so what it computes is the same.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from flexref_cupy.starting import DRIVER

EARLY_CAPABILITY = (9, 0)
"""Since then a launch may overlap the end of the one before it (CUDA C++ Programming Guide, programmatic launch)."""

_BESIDE_THE_LAST = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""

Grid = tuple[int, int, int]
"""Blocks of a launch along x, y and z."""

Launch = Callable[[int, Grid, int, int, int], None]
"""function, blocks, threads of a block, bytes of dynamic shared memory, address of CUDA's launch list."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes."""

    _fields_ = (("name", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class EarlyLaunch:
    """CUDA's `cuLaunchKernelEx` on one stream, told that a kernel may begin before the last one has ended."""

    def __init__(self, library: Any, stream: int, check: Callable[[int], None]) -> None:
        """`library`: CUDA's driver; `check` raises what a status means, unless it is 0."""
        self._call, self._check = library.cuLaunchKernelEx, check
        self._call.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._attribute = _Attribute(_BESIDE_THE_LAST, 0, (ctypes.c_int * 16)(1))
        self._config = _Config(stream=stream, attributes=ctypes.addressof(self._attribute), attribute_count=1)
        self._config.block[1] = self._config.block[2] = 1
        self._address = ctypes.addressof(self._config)

    def __call__(self, function: int, grid: Grid, block: int, shared_bytes: int, arguments: int) -> None:
        """Start a kernel; the arguments are copied before the call returns."""
        config = self._config
        config.grid[:], config.block[0], config.shared_bytes = grid, block, shared_bytes
        self._check(self._call(self._address, function, None, arguments))


def launches(driver: Any, capability: tuple[int, int], stream: int) -> tuple[Launch, Launch]:
    """What starts kernels on a stream of a device: when the last one has ended, and early; `driver` as CuPy gives it.

    The early one takes the host some microseconds more, so it is for what is recorded.
    """

    def launch(function: int, grid: Grid, block: int, shared_bytes: int, arguments: int) -> None:
        driver.launchKernel(function, *grid, block, 1, 1, shared_bytes, stream, 0, arguments)

    def check(status: int) -> None:
        if status:
            raise driver.CUDADriverError(status)

    if capability < EARLY_CAPABILITY:
        return launch, launch
    return launch, EarlyLaunch(ctypes.CDLL(DRIVER), stream, check)
