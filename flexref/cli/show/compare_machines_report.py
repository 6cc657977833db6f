"""What machines make of models as one table for people; it plans nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from flexref.cli.show.console import FilledTable
from flexref.errors import in_gib

WRITTEN, WHY = "written for 1 M tokens", "policy, or why not"

HEADINGS = ("model", "machine", "tokens/s", "cost of 1 M tokens", WRITTEN, WHY)


def print_machines(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for every model on every machine: figures and the policy, or why there are none."""
    cells = []
    for found in rows:
        if found["problem"] is not None:
            cells.append((found["model"], found["machine"], "", "", "", found["problem"]))
            continue
        cost, written = found["cost_per_million_tokens"], int(found["disk_written_bytes_per_million_tokens"])
        cells.append(
            (
                found["model"],
                found["machine"],
                f"{found['tokens_per_s']:.4g}",
                "" if cost is None else f"{cost:.2f}",
                in_gib(written) if written else "",
                found["in_short"],
            )
        )
    title = "What each machine makes of each model (predicted)"
    console.print(FilledTable(title, HEADINGS, cells, left=("machine", WHY)))
