"""Whether numba is installed, told without loading it, which takes most of a second; it knows no processor."""

from flexref.backend.presence import Presence


def presence() -> Presence:
    """What is known of the port without loading numba."""
    return Presence.of("numba", "numba", "numba")
