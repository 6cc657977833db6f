"""Commands for those who write a port, and what they share: is hypothesis here, and what else was asked for."""

from collections.abc import Collection
from importlib.util import find_spec

import click

from flexref.cli.options import was_given
from flexref.errors import FlexrefError, install_hint

MISSING = f"the contract needs hypothesis, which is not installed: {install_hint('testing')}"


def has_hypothesis() -> bool:
    """Whether the contract can be tried."""
    return find_spec("hypothesis") is not None


def need_hypothesis() -> None:
    """`FlexrefError` that names the extra where hypothesis is not installed."""
    if not has_hypothesis():
        raise FlexrefError(MISSING)


def what_was_given(context: click.Context, beside: Collection[str]) -> click.Parameter | None:
    """The first parameter on the command line but those of `beside`, and what all commands take; None if none is."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if parameter.expose_value and name not in beside and was_given(context, name):
            return parameter
    return None
