"""The port for the host's processor, by functions that numba compiles; its attention serves other ports as well."""

from flexref_numba.backend import NumbaBackend

__all__ = ["NumbaBackend"]
