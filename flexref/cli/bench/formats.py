"""Benchmarks as Markdown, CSV, a JSON list or JSON lines, from what `Report.to_json` gives; it times nothing."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

FORMATS = ("table", "md", "csv", "json", "jsonl")

ARGUMENTS = ("backend", "rows", "prompt_len", "gen_len", "lengths")
"""What a row of a table has of a benchmark's arguments."""

FIGURES = ("prefill_s", "decode_s", "decode_step_s", "tokens_per_s")

INTERVAL = {"mean": "tokens_per_s_mean", "least": "tokens_per_s_least", "most": "tokens_per_s_most"}
"""What it has of the interval, and under which name."""

FLOOR = ("decode_step_floor_s", "floor_s", "floor_ratio")

Add = Callable[[Mapping[str, Any]], None]


@contextmanager
def printing(name: str) -> Iterator[Add]:
    """What prints a benchmark in the format `name`, which is any of FORMATS but table.

    A list is printed when the context ends, also by an error, so that what was timed by then is not lost.
    """
    if name == "json":
        found: list[Mapping[str, Any]] = []
        try:
            yield found.append
        finally:
            if found:
                click.echo(json.dumps(found, indent=2))
    elif name == "jsonl":
        yield lambda benchmark: click.echo(json.dumps(benchmark))
    else:
        yield _rows(_csv if name == "csv" else _markdown, name)


def row(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Columns by name: what was timed, its figures, where; None for what a benchmark does not have."""
    arguments, policy = benchmark["arguments"], benchmark.get("policy") or {}
    interval, here = benchmark.get("tokens_per_s_interval") or {}, benchmark["machine"]
    peaks = benchmark.get("peak_bytes") or {}
    scheme, predicted = benchmark["weights_scheme"], benchmark.get("predicted")
    return {
        "model": benchmark["model"],
        "weights": benchmark["weights_dtype"] if scheme == "none" else scheme,
        **{name: arguments[name] for name in ARGUMENTS},
        **{name: policy.get(name) for name in ("rows_per_group", "groups_per_block")},
        "runs": len(benchmark["runs"]),
        **{name: benchmark.get(name) for name in FIGURES},
        **{column: interval.get(name) for name, column in INTERVAL.items()},
        **{name: benchmark.get(name) for name in FLOOR},
        "predicted_s": predicted["prefill_s"] + predicted["decode_s"] if predicted else None,
        "predicted_error": predicted["errors"].get("both") if predicted else None,
        "peak_device_bytes": peaks.get("device"),
        "peak_host_bytes": peaks.get("host"),
        "machine": ", ".join(here["gpu"]) or here["cpu"],
        "link_gb_per_s": here.get("link_gb_per_s"),
        "flexref": benchmark["versions"]["flexref"],
        "cut_short": benchmark["cut_short"],
    }


def _rows(line: Callable[[list[Any]], str], name: str) -> Add:
    """Prints a row for every benchmark, and names of the columns before the first one."""
    begun = False

    def add(benchmark: Mapping[str, Any]) -> None:
        nonlocal begun
        cells = row(benchmark)
        if not begun:
            click.echo(line(list(cells)))
            if name == "md":
                click.echo(line(["---"] * len(cells)))
        begun = True
        click.echo(line(list(cells.values())))

    return add


def _csv(cells: list[Any]) -> str:
    """One line of RFC 4180; numbers with all their digits."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(["" if cell is None else cell for cell in cells])
    return written.getvalue().removesuffix("\r\n")  # which makes it quote both of these


def _markdown(cells: list[Any]) -> str:
    """One line of a table; five digits of a fraction, and no cell that another line or bar would break."""
    words = (f"{cell:.5g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells)
    return f"| {' | '.join(' '.join(word.split()).replace('|', chr(92) + '|') for word in words)} |"
