"""How wide tables and lines for people are, and which columns a table has; it knows no table.

One rule: a terminal's own width, and 120 columns in a file or a pipe, or what COLUMNS says.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 120
"""Columns of what goes to a file or a pipe."""


def table_console(*, err: bool = False, highlight: bool = True) -> Console:
    """stdout, or stderr, for tables and lines; `highlight`: whether numbers are coloured on a terminal.

    Brackets in names and messages are brackets: nothing is taken for markup.
    """
    console = Console(stderr=err, highlight=highlight, markup=False, emoji=False)
    if console.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return console
    return Console(stderr=err, highlight=highlight, markup=False, emoji=False, width=PIPED_WIDTH)


def filled_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
    bold: Collection[int] = (),
) -> Table:
    """A table without the columns that have nothing in any row; numbers stay whole where words are wrapped.

    The first column, and those whose headings are in `left`, hold words. `bold`: numbers of rows to set off.
    """
    rows = [tuple(row) for row in rows]
    kept = [at for at, _ in enumerate(headings) if at == 0 or any(row[at] for row in rows)]
    table = Table(title=title, title_justify="left")
    for at in kept:
        words = at == 0 or headings[at] in left
        table.add_column(headings[at], justify="left" if words else "right", no_wrap=not words)
    for number, row in enumerate(rows):
        table.add_row(*(row[at] for at in kept), style="bold" if number in bold else None)
    return table


def print_named(console: Console, named: Iterable[tuple[str, str]], width: int) -> None:
    """A line for each (name, text), all texts in one column after names of `width` letters."""
    for name, text in named:
        print_wrapped(console, f"{name:{width}} {text}", width + 1)


def print_wrapped(console: Console, line: str, indent: int = 0) -> None:
    """A line, wrapped between words where it is too long, what follows then indented."""
    parts = wrap(line, console.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    for part in parts:
        console.print(part, soft_wrap=True, highlight=False)
