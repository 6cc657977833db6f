"""Whether PyTorch is installed, told without loading it, which takes seconds; it knows no device."""

from flexref.backend.presence import Presence


def presence() -> Presence:
    """What is known of the port without loading PyTorch."""
    return Presence.of("torch", "PyTorch", "torch")
