"""What the system must allow a process before libraries are loaded; it loads none."""

import resource

from flexref.errors import FlexrefError, in_gib

LEAST_ADDRESS_BYTES = 512 << 20
"""With less, libraries for linear algebra abort while they are loaded, or ask for memory for ever; the built-in model
needs 350 MB."""


def check_limits() -> None:
    """`FlexrefError` if the process may have too little address space (`ulimit -v`) to load what all commands need."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_BYTES:
        raise FlexrefError(
            f"this process may have {in_gib(limit)} of address space (ulimit -v), needed at least "
            f"{in_gib(LEAST_ADDRESS_BYTES)}"
        )
