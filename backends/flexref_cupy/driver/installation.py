"""What must be installed for the port to run, and the line that says what is not; it loads nothing."""

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flexref.errors import BackendUnavailable

DRIVER_NEEDED = {12: "525", 13: "580"}
"""The oldest Linux driver that runs programs of a CUDA major version (NVIDIA, *CUDA Compatibility*, table 1)."""

INSTALL = (
    "pip install '.[cuda13]' (driver 580 or later) or '.[cuda12]' (driver 525 or later) in the checkout of flexref"
)


def check_driver(runtime: Any) -> None:
    """`BackendUnavailable` if there is no NVIDIA driver, or one older than the CUDA that CuPy was made for."""
    try:
        driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except runtime.CUDARuntimeError as error:
        raise BackendUnavailable(f"CUDA does not answer ({first_line(error)})") from error
    major = needed // 1000
    if driver == 0:
        raise BackendUnavailable("no NVIDIA driver is loaded here; nvidia-smi would list its devices")
    if driver // 1000 < major:
        raise BackendUnavailable(
            f"the NVIDIA driver knows CUDA {driver // 1000}.{driver % 1000 // 10} at most, CuPy needs CUDA {major} "
            f"(driver {DRIVER_NEEDED.get(major, 'of that time')} or later); else {INSTALL}"
        )


def cupy_version() -> str:
    """CuPy's version, read beside its `__init__`, which is not run; "" if CuPy lies elsewhere."""
    spec = find_spec("cupy")
    path = None if spec is None or spec.origin is None else Path(spec.origin).with_name("_version.py")
    return str(runpy.run_path(str(path))["__version__"]) if path is not None and path.exists() else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error) or type(error).__name__).splitlines()[0]
