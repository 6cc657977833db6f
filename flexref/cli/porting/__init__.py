"""Commands for those who write a port, and whether hypothesis is here, which the contract is tried with."""

from importlib.util import find_spec

from flexref.errors import FlexrefError, install_hint

MISSING = f"the contract needs hypothesis, which is not installed: {install_hint('testing')}"


def has_hypothesis() -> bool:
    """Whether the contract can be tried."""
    return find_spec("hypothesis") is not None


def need_hypothesis() -> None:
    """`FlexrefError` that names the extra where hypothesis is not installed."""
    if not has_hypothesis():
        raise FlexrefError(MISSING)
