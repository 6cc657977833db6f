"""The CUDA port, through CuPy: float16 storage, float32 sums, its own kernels; importing it loads no CuPy."""

from flexref_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
