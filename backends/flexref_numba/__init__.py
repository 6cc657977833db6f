"""The port for the host's processor, by functions that numba compiles; its attention serves other ports as well."""

from flexref.errors import install_hint

try:
    import numba as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"numba cannot be imported ({error}): {install_hint('numba')}") from error

from flexref_numba.backend import NumbaBackend

__all__ = ["NumbaBackend"]
