"""Another engine's logits beside a reference's as a table for people; it computes nothing."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.check.logits_compare import LogitsDifference

ROWS_SHOWN = 20
"""Rows in the table, the worst of all; `--json` has every one."""

COLUMNS = (
    "row",
    "positions",
    "times the bound",
    "at position",
    "token",
    "error",
    "bound",
    "beyond",
    "rms share",
    "other tokens",
)


def print_difference(console: Console, found: "LogitsDifference") -> None:
    """Print the rows, the worst first, where their greedy tokens part, and the verdict."""
    rows = sorted(found.rows, key=lambda row: -1.0 if row.worst is None else -row.worst.share)[:ROWS_SHOWN]
    table = Table(title=f"How far from float64, as a share of what {found.dtype} permits", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        worst = row.worst
        if worst is not None:
            numbers = [f"{worst.share:.3g}", str(worst.position), str(worst.token_id)]
            numbers += [
                f"{worst.error:.3g}",
                f"{worst.bound:.3g}",
                str(row.outside),
                f"{row.rms_share:.3g}",
                str(row.diverging),
            ]
            cells = [Text(cell) for cell in (str(row.row), str(row.about.positions), *numbers)]
            table.add_row(*cells, style="bold red" if row.outside else None)
    console.print(table)
    left = len(found.rows) - len(rows)
    if left:
        console.print(f"{how_many(left, 'more row')} {'is' if left == 1 else 'are'} no worse")
    for row in rows:
        if row.first_divergence is not None:
            console.print(Text(f"row {row.row} first takes another token at {row.first_divergence}"))
    verdict = "within" if found.within else "outside"
    console.print(f"{verdict} the bounds of {found.dtype}")
