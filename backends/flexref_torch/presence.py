"""Whether PyTorch is installed, which takes seconds to load; which devices it has it says itself alone."""

from flexref.backend.presence import Presence


def presence() -> Presence:
    """What is known of the port without loading PyTorch."""
    return Presence.of("torch", "PyTorch", "torch")
