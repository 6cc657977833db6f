"""Whether numba is installed, which takes most of a second to load."""

from flexref.backend.presence import Presence


def presence() -> Presence:
    """What is known of the port without loading numba."""
    return Presence.of("numba", "numba", "numba")
