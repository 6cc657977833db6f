"""What a figure was measured on: processor, memory, device, and the versions of what ran; it measures nothing."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flexref.backend.protocol import Description
from flexref.version import __version__

PROCESSOR_FILE = Path("/proc/cpuinfo")
DRIVER_FOLDER = Path("/proc/driver/nvidia")
"""Where Linux and NVIDIA's driver describe themselves."""


def machine(port: Description) -> dict[str, Any]:
    """Processor, cores that this process may use, bytes of memory, and devices: the port's, else what the system has.

    A port without devices of its own may still share its memory and its bus with some.
    """
    return {
        "cpu": _after(PROCESSOR_FILE, "model name", ":") or platform.processor() or platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpu": list(port.devices) or _gpus(),
    }


def versions(port: Description) -> dict[str, str]:
    """Versions by name: flexref, Python, numpy, what numpy multiplies with, the driver, and the port's libraries."""
    found = {"flexref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = build.get("Build Dependencies", {}).get("blas", {})
    if blas:
        found["blas"] = f"{blas.get('name')} {blas.get('version')}"
    driver = _first_line(DRIVER_FOLDER / "version")
    if driver:
        found["driver"] = driver.partition(":")[2].strip()
    return {**found, **port.versions}


def _gpus() -> list[str]:
    """Names of the devices that NVIDIA's driver knows."""
    files = sorted(DRIVER_FOLDER.glob("gpus/*/information"))
    return [name for path in files if (name := _after(path, "Model", ":"))]


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
