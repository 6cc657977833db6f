"""`flexref compare-machines`: which machine to rent or buy for a job; plans every pair, and prints one table."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.planner_options import in_short, planner_options, wanted_of
from flexref.errors import CapacityError, PolicyError

if TYPE_CHECKING:
    from flexref.engine.candidates import Wanted
    from flexref.planner.machine import Machine


@click.command("compare-machines")
@click.option("--machine", "machines", multiple=True, metavar="FILE|NAME", help="Repeatable; default: all known ones.")
@click.option("--model", "models", multiple=True, required=True, metavar="SIZE|FILE", help="Repeatable.")
@planner_options
@click.option("--price-per-hour", "prices", multiple=True, metavar="MACHINE=PRICE", help="Repeatable.")
@click.option(
    "--plot", "plot_file", metavar="FILE.png", help="Draw tokens per second (or, with prices, what they cost)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    machines: tuple[str, ...],
    models: tuple[str, ...],
    prices: tuple[str, ...],
    plot_file: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan every model on every machine: tokens per second, cost per million tokens, and the policy that reaches it."""
    from flexref.cli.compare_models_plot import check_plot
    from flexref.engine.machines import known_machines, machine_named

    known_prices = prices_of(prices)
    if plot_file:
        check_plot(plot_file)
    chosen = [(name, machine_named(name)) for name in machines or known_machines()]
    strangers = sorted(set(known_prices) - {name for name, _ in chosen})
    if strangers:
        raise click.UsageError(f"--price-per-hour names {strangers[0]!r}, which is not among the machines")
    wanted = wanted_of(options)
    rows = [row(model, named, wanted, known_prices.get(named[0])) for model in models for named in chosen]
    rows.sort(key=lambda found: (models.index(found["model"]), _order(found, bool(known_prices))))
    if plot_file:
        _draw(rows, plot_file, bool(known_prices))
    if as_json:
        click.echo(json.dumps({"rows": rows}))
    else:
        _print(rows)


def prices_of(texts: Sequence[str]) -> dict[str, float]:
    """Prices of an hour by machine; a usage error for what is not MACHINE=PRICE."""
    prices = {}
    for text in texts:
        name, separator, price = text.rpartition("=")
        try:
            prices[name] = float(price)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise click.UsageError(f"--price-per-hour must be MACHINE=PRICE, found {text!r}")
    return prices


def row(model: str, named: "tuple[str, Machine]", wanted: "Wanted", price: float | None) -> dict[str, Any]:
    """What one machine makes of one model: figures by name; `problem` where nothing fits."""
    from flexref.engine.planning import plan
    from flexref.planner.price import cost_per_million_tokens, written_bytes_per_million_tokens

    name, machine = named
    found: dict[str, Any] = {"model": model, "machine": name, "price_per_hour": price, "problem": None}
    try:
        best = plan(model, machine, wanted).best
    except (CapacityError, PolicyError) as error:
        return {**found, "problem": str(error)}
    prediction = best.prediction
    assert prediction is not None
    written = written_bytes_per_million_tokens(prediction.disk_write_bytes, prediction.generated_tokens)
    cost = None if price is None else cost_per_million_tokens(prediction.tokens_per_s, price)
    return {
        **found,
        "tokens_per_s": prediction.tokens_per_s,
        "cost_per_million_tokens": cost,
        "disk_written_bytes_per_million_tokens": written,
        "policy": best.to_json()["policy"],
        "in_short": in_short(best),
    }


def _order(found: dict[str, Any], by_cost: bool) -> tuple[bool, float]:
    """The cheapest, or the fastest, first; what does not fit last."""
    if found["problem"] is not None:
        return True, 0.0
    cost = found["cost_per_million_tokens"]
    return (cost is None, cost or -found["tokens_per_s"]) if by_cost else (False, -found["tokens_per_s"])


def _draw(rows: Sequence[dict[str, Any]], path: str, by_cost: bool) -> None:
    from flexref.cli.plots import draw_machines

    key = "cost_per_million_tokens" if by_cost else "tokens_per_s"
    known = [(found["machine"], found["model"], found[key]) for found in rows if found.get(key) is not None]
    draw_machines(known, path, "cost of a million generated tokens" if by_cost else "generated tokens per s")


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from flexref.cli.bench import PIPED_WIDTH
    from flexref.errors import in_gib

    table = Table(title="What each machine makes of each model (predicted)", title_justify="left")
    for heading in (
        "model",
        "machine",
        "tokens/s",
        "cost of 1 M tokens",
        "written for 1 M tokens",
        "policy, or why not",
    ):
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
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(table)
