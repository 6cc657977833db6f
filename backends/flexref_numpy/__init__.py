"""The reference port: plain numpy in float32, against which every other port is checked."""

from flexref_numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
