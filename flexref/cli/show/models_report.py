"""Models that are known by name, as a table for people; it computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flexref.errors import BINARY_UNITS

WEIGHTS, CACHE = ("float16", "int8", "int4"), ("float16", "int4")
"""Types whose bytes have columns."""


def print_models(console: Console, models: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per model, narrow enough for a terminal of 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("weights", "layers", "width", *WEIGHTS, "KV/token", "in int4"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        weights, cache = model["weights_bytes"], model["cache_bytes_per_token"]
        table.add_row(
            model["name"],
            _count(model["parameters"]),
            str(model["layers"]),
            str(model["width"]),
            *(_bytes(weights[stored]) for stored in WEIGHTS),
            *(_bytes(cache[stored]) for stored in CACHE),
        )
    console.print(table)
    console.print(
        "KV/token: cache of one token of a row in float16; twice that on a port that computes in float32 (numpy).",
        highlight=False,
    )


def _count(parameters: int) -> str:
    """A count as it is said of models: `7.76 M`, `6.66 B`."""
    unit, count = ("B", 10**9) if parameters >= 10**9 else ("M", 10**6)
    return f"{parameters / count:.3g} {unit}"


def _bytes(size: int) -> str:
    """Three digits in a binary unit: the table is to compare models, `--json` has every byte."""
    for unit, unit_bytes in BINARY_UNITS:
        if size >= unit_bytes:
            return f"{size / unit_bytes:.{max(0, 3 - len(str(size // unit_bytes)))}f} {unit}"
    return f"{size} B"
