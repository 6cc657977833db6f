"""The CUDA port, through CuPy: float16 storage, float32 sums, its own kernels; importing it loads no CuPy.

The port itself is loaded when it is asked for, so that `starting` can be had before numpy and all else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexref_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]


def __getattr__(name: str) -> Any:
    if name != "CupyBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flexref_cupy.backend import CupyBackend  # noqa: PLC0415

    return CupyBackend
