"""Describes the machine and the software that a figure was measured with, and what is free; it measures nothing."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flexref.backend.capabilities import Description
from flexref.backend.protocol import Backend
from flexref.tiers.spill_file import made_folder
from flexref.units import KIB
from flexref.version import __version__

PROCESSOR_FILE = Path("/proc/cpuinfo")
CACHES_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
DRIVER_FOLDER = Path("/proc/driver/nvidia")
"""Where Linux and NVIDIA's driver describe themselves."""


def machine(port: Description) -> dict[str, Any]:
    """The processor, the cores that this process may use, bytes of memory, and names of GPUs.

    GPUs are those that the port describes, else those that the system has: a port that uses none still shares memory
    and bus with them.
    """
    return {
        "cpu": _after(PROCESSOR_FILE, "model name", ":") or platform.processor() or platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpu": list(port.devices) or _gpus(),
    }


def versions(port: Description) -> dict[str, str]:
    """Versions by name: flexref, Python, numpy and its BLAS, NVIDIA's driver, and the libraries of the port."""
    found = {"flexref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = build.get("Build Dependencies", {}).get("blas", {})
    if blas:
        found["blas"] = f"{blas.get('name')} {blas.get('version')}"
    driver = _first_line(DRIVER_FOLDER / "version")
    if driver:
        found["driver"] = driver.partition(":")[2].strip()
    return {**found, **port.versions}


def capacities(backend: Backend, disk_dir: str | Path) -> dict[str, int]:
    """What is free now, in bytes: of the device, of the host, of the disk of `disk_dir`."""
    status = os.statvfs(made_folder(disk_dir))
    return {
        "device": backend.free_bytes("device"),
        "host": backend.free_bytes("host"),
        "disk": status.f_bavail * status.f_frsize,
    }


def host_cache_bytes() -> int:
    """Bytes of the largest cache of the host's first processor; 0 if the system does not tell."""
    told = [_first_line(size).removesuffix("K") for size in CACHES_FOLDER.glob("index*/size")]
    return max((int(size) * KIB for size in told if size.isdecimal()), default=0)


def _gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver lists."""
    files = sorted(DRIVER_FOLDER.glob("gpus/*/information"))
    return [name for path in files if (name := _after(path, "Model", ":"))]


def _first_line(path: Path) -> str:
    """A file's first line; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:  # no such file: another system, or no NVIDIA driver
        return ""


def _after(path: Path, key: str, separator: str) -> str:
    """The text after `separator` on the first line that starts with `key`; "" if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(separator)[2].strip() for line in lines if line.startswith(key)), "")
