"""What machines make of models as one table for people; it plans nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flexref.errors import in_gib

HEADINGS = ("model", "machine", "tokens/s", "cost of 1 M tokens", "written for 1 M tokens", "policy, or why not")


def print_machines(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for every model on every machine: figures and the policy, or why there are none."""
    table = Table(title="What each machine makes of each model (predicted)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if "tokens" in heading else "left")
    for found in rows:
        if found["problem"] is not None:
            table.add_row(found["model"], found["machine"], "", "", "", found["problem"])
            continue
        cost = found["cost_per_million_tokens"]
        table.add_row(
            found["model"],
            found["machine"],
            f"{found['tokens_per_s']:.4g}",
            "" if cost is None else f"{cost:.2f}",
            in_gib(int(found["disk_written_bytes_per_million_tokens"])),
            found["in_short"],
        )
    console.print(table)
