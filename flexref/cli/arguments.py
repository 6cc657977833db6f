"""What the value of an argument may be, told before anything large is imported; it runs nothing.

A name that nobody knows, a text that is empty and an amount that is none are wrong calls whatever else is asked for.
"""

import math
from typing import Any

import click
from click.types import StringParamType


class Amount(click.FloatRange):
    """A finite number of at least 0; nan and infinity, which a range lets through, are no amounts."""

    def __init__(self, *, above: bool = False, most: float | None = None) -> None:
        """With `above`, 0 is no amount either; nor is anything from `most` on."""
        super().__init__(min=0, min_open=above, max=most, max_open=most is not None)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error if it is none."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return super()._describe_range() if self.max is None else f"x{'>' if self.min_open else '>='}{self.min}"


class FilledText(StringParamType):
    """Text that is not empty: a file, a folder, a name, or what a model reads."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; a usage error if there is none, and what `check` raises."""
        text: str = super().convert(value, param, ctx)
        if not text:
            self.fail("it is empty.", param, ctx)
        self.check(text)
        return text

    def check(self, text: str) -> None:
        """Raise a `FlexrefError` if no call can have this text."""


class WrittenText(FilledText):
    """Text that is written into files as it stands: other than the name of a file it must be UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; a usage error for bytes of the command line that are no UTF-8."""
        text = super().convert(value, param, ctx)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"it is not UTF-8: {text!a}.", param, ctx)
        return text


class WeightFileName(FilledText):
    """A weight file, or the built-in model."""

    def check(self, text: str) -> None:
        """`StorageError` if there is no such file."""
        from flexref.storage.names import resolve

        resolve(text)


class ModelName(FilledText):
    """A weight file, the built-in model, or a published size."""

    def check(self, text: str) -> None:
        """`UnknownName` if it is none of them."""
        from flexref.storage.names import check_model

        check_model(text)


class MachineName(FilledText):
    """A machine's file, or the name of one that ships or is kept."""

    def check(self, text: str) -> None:
        """`UnknownName` if it is neither."""
        from flexref.machine.names import check_machine

        check_machine(text)


class BackendName(FilledText):
    """An installed port."""

    def check(self, text: str) -> None:
        """`UnknownBackend` if no package registers it; none is imported."""
        from flexref.backend.registry import check_registered

        check_registered(text)


TEXT, WEIGHT_FILE, MODEL, MACHINE, BACKEND = FilledText(), WeightFileName(), ModelName(), MachineName(), BackendName()

WRITTEN_TEXT = WrittenText()

MOST_GIB = 1 << 20
"""More than any machine has is no budget."""

BUDGET_GIB = Amount(above=True, most=MOST_GIB)
"""Memory that a run may take."""

AHEAD_GIB = Amount(most=MOST_GIB)
"""Part of such memory; 0: no more than must be."""
