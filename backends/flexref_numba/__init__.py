"""The port for the host's processor, by functions that numba compiles; its attention serves other ports as well.

Importing it loads no numba: the port itself is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from flexref.errors import install_hint

if TYPE_CHECKING:
    from flexref_numba.backend import NumbaBackend

__all__ = ["NumbaBackend"]


def __getattr__(name: str) -> Any:
    if name != "NumbaBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import numba as _  # noqa: F401, PLC0415
    except ImportError as error:
        raise ImportError(f"numba cannot be imported ({error}): {install_hint('numba')}") from error
    from flexref_numba.backend import NumbaBackend  # noqa: PLC0415

    return NumbaBackend
