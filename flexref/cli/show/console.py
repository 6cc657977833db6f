"""How wide tables and lines for people are, and which columns a table has; it knows no table.

One rule: a terminal's own width, and 120 columns in a file or a pipe, or what COLUMNS says from 20 to 9999: shells that
know no width export 0, and nothing fits into less.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

PIPED_WIDTH = 120
"""Columns of what goes to a file or a pipe."""

SIZE = re.compile("[2-9][0-9]|[1-9][0-9]{2,3}")
"""What COLUMNS and LINES may say to be heard; rich itself prints nothing on 0 columns, and fails where it reads ²."""

WHOLE_WIDTH = 24
"""Columns whose cells have no more letters are never narrowed: names and numbers stay whole."""

SENTENCE_WIDTH = 40
"""Letters of a column of sentences: headings of others are wrapped rather than that it gets less."""

FRAME = 3
"""Letters that a table has beside every cell."""


def table_console(*, err: bool = False, highlight: bool = True) -> Console:
    """stdout, or stderr, for tables and lines; `highlight`: whether numbers are coloured on a terminal.

    Brackets in names and messages are brackets: nothing is taken for markup.
    """
    environment = _environment()
    console = Console(stderr=err, highlight=highlight, markup=False, emoji=False, _environ=environment)
    if not console.is_terminal and "COLUMNS" not in environment:
        console.width = PIPED_WIDTH
    return console


def _environment() -> Mapping[str, str]:
    """The environment, without a size that is none."""
    sizes = ("COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if name not in sizes or SIZE.fullmatch(value)}


@dataclass(frozen=True)
class FilledTable:
    """A table without the columns that have nothing in any row, as wide as there is room.

    The first column, and those whose headings are in `left`, hold words. Names and numbers stay whole: where there is
    little room headings and sentences are wrapped. `bold`: numbers of rows to set off.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ()
    bold: Collection[int] = ()
    caption: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table for a console as wide as `options` say."""
        kept = [at for at, _ in enumerate(self.headings) if at == 0 or any(row[at] for row in self.rows)]
        cells = {at: [row[at] for row in self.rows] for at in kept}
        narrow = {at: _whole_width(self.headings[at], cells[at]) for at in kept}
        wide = {at: width and max(width, len(self.headings[at])) for at, width in narrow.items()}
        fits = sum((width or SENTENCE_WIDTH) + FRAME for width in wide.values()) < options.max_width
        table = Table(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        for at in kept:
            justify: Literal["left", "right"] = "left" if at == 0 or self.headings[at] in self.left else "right"
            width = wide[at] if fits else narrow[at]
            table.add_column(self.headings[at], justify=justify, width=width, overflow="fold")
        for number, row in enumerate(self.rows):
            table.add_row(*(row[at] for at in kept), style="bold" if number in self.bold else None)
        yield table


def _whole_width(heading: str, cells: Sequence[str]) -> int | None:
    """Letters that keep a column's names and numbers whole, while its heading is wrapped; None for one of sentences."""
    width = max(map(len, (*cells, *heading.split())), default=0)
    return width if width <= WHOLE_WIDTH else None


def print_named(console: Console, named: Iterable[tuple[str, str]], width: int) -> None:
    """A line for each (name, text), all texts in one column after names of `width` letters."""
    for name, text in named:
        print_wrapped(console, f"{name:{width}} {text}", width + 1)


def print_wrapped(console: Console, line: str, indent: int = 0) -> None:
    """A line, wrapped between words where it is too long, what follows then indented."""
    parts = wrap(line, console.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    for part in parts:
        console.print(part, soft_wrap=True, highlight=False)
