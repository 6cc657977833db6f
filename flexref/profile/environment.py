"""What a figure was measured on: processor, memory, device, and the versions of what ran; it measures nothing."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flexref import __version__

PROCESSOR_FILE = Path("/proc/cpuinfo")
DRIVER_FOLDER = Path("/proc/driver/nvidia")
"""Where Linux and NVIDIA's driver describe themselves."""


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, bytes of memory, and the names of the CUDA devices."""
    return {
        "cpu": _after(PROCESSOR_FILE, "model name", ":") or platform.processor() or platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpu": _gpus(),
    }


def versions() -> dict[str, str]:
    """Versions by name: flexref, Python, numpy, what numpy multiplies with, the driver; CuPy and CUDA where loaded."""
    found = {"flexref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = build.get("Build Dependencies", {}).get("blas", {})
    if blas:
        found["blas"] = f"{blas.get('name')} {blas.get('version')}"
    driver = _first_line(DRIVER_FOLDER / "version")
    if driver:
        found["driver"] = driver.partition(":")[2].strip()
    return {**found, **_cuda_versions()}


def _cuda_versions() -> dict[str, str]:
    """Versions of CuPy and of CUDA as CuPy sees them: only where a port has loaded it, for this must not."""
    cupy: Any = sys.modules.get("cupy")
    if cupy is None:
        return {}
    runtime = cupy.cuda.runtime
    numbers = {"cuda": runtime.runtimeGetVersion(), "driver_cuda": runtime.driverGetVersion()}
    found = {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in numbers.items()}
    return {"cupy": str(cupy.__version__), **found, "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion()))}


def _gpus() -> list[str]:
    cupy: Any = sys.modules.get("cupy")
    if cupy is None:
        files = sorted(DRIVER_FOLDER.glob("gpus/*/information"))
        return [name for path in files if (name := _after(path, "Model", ":"))]
    runtime = cupy.cuda.runtime
    try:
        devices = [runtime.getDeviceProperties(number) for number in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError:  # CuPy without a driver: there is nothing to name
        return []
    return [f"{device['name'].decode()}, {device['totalGlobalMem']} bytes" for device in devices]


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:  # not a Linux that tells, or no such driver
        return ""


def _after(path: Path, key: str, separator: str) -> str:
    """What stands after `separator` on the first line of a file that starts with `key`, or nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(separator)[2].strip() for line in lines if line.startswith(key)), "")
