"""Whether PyTorch is installed, which takes seconds to load; which devices it has it says itself alone."""

from functools import partial

from flexref.backend.presence import Presence

presence = partial(Presence.of, "torch", "PyTorch", "torch")
