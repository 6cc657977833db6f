"""Where tables for people go: a terminal as wide as it is, a file or a pipe in a fixed width; it knows no table."""

from rich.console import Console

PIPED_WIDTH = 120
"""Columns of tables that go to a file or a pipe."""

PIPED_WIDTH_OF_OPERATORS = 180
"""The same for a port's check, which has a column for every number of an operator's worst call."""


def table_console(piped_width: int = PIPED_WIDTH, *, highlight: bool = True) -> Console:
    """stdout for tables; `highlight`: whether numbers are coloured on a terminal."""
    console = Console(highlight=highlight)
    return console if console.is_terminal else Console(width=piped_width, highlight=highlight)
