"""`flexref compare-machines`: which machine to rent or buy for a job; plans every pair, and prints one table."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import MODEL
from flexref.cli.completion import priced_machines, sizes
from flexref.cli.options import option
from flexref.cli.plan_options import plan_options, plan_request_of
from flexref.errors import CapacityError, PolicyError

if TYPE_CHECKING:
    from flexref.machine.machine import Machine
    from flexref.planner.plan_request import PlanRequest

FIGURES = ("tokens_per_s", "cost_per_million_tokens", "disk_written_bytes_per_million_tokens", "policy", "in_short")
"""What is known of a machine that can run a model; the cost only if its price is."""


SPEED_UNIT = "generated tokens per second (more is better)"

COST_UNIT = "cost of a million generated tokens, in the currency of the prices (less is better)"
"""What a plot's axis says."""


@click.command("compare-machines")
@option(
    "--machine", names=("machines",), multiple=True, help="A machine to plan for, repeatable; default: all known ones."
)
@option(
    "--model",
    names=("models",),
    multiple=True,
    type=MODEL,
    metavar="SIZE|FILE",
    shell_complete=sizes,
    help="A model to plan, repeatable.",
)
@plan_options
@click.option(
    "--price-per-hour",
    "prices",
    multiple=True,
    metavar="MACHINE=PRICE",
    shell_complete=priced_machines,
    help="What a machine costs in an hour, repeatable.",
)
@option("--plot", metavar="FILE.png", help="Draw tokens per second, or with prices their cost.")
@option("--force")
@option("--json")
def command(
    machines: tuple[str, ...],
    models: tuple[str, ...],
    prices: tuple[str, ...],
    plot_file: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan every model on every machine: tokens per second, cost per million tokens, and the policy that reaches it.

    Machines are sorted by what a million tokens cost if any price is known, else by tokens per second; those that
    cannot run a model come last and say why. Every pair takes some seconds, and as many are planned at once as there
    are cores.
    """
    known_prices = prices_of(prices)
    if plot_file is not None:
        from flexref.cli.show.outputs import check_outputs
        from flexref.cli.show.plots import check_plot

        check_plot(plot_file, "--plot")
        check_outputs({"--plot": plot_file}, (*machines, *models, options["lengths_file"]), force=force)

    from flexref.cli.show.compare_machines_report import print_machines
    from flexref.cli.show.console import table_console
    from flexref.cli.show.progress import progress
    from flexref.cli.side_by_side import side_by_side
    from flexref.machine.known import machine_named
    from flexref.machine.names import known_machines
    from flexref.planner.candidates import layouts

    models = tuple(dict.fromkeys(models))
    chosen = [(name, machine_named(name)) for name in dict.fromkeys(machines or known_machines())]
    strangers = sorted(set(known_prices) - {name for name, _ in chosen})
    if strangers:
        raise click.UsageError(f"--price-per-hour names {strangers[0]!r}, which is not among the machines")
    wanted = plan_request_of(options)
    for model in models:
        list(layouts(model, wanted.weights_schemes))  # a file that cannot be planned is told before the first plan
    pairs = list(product(models, chosen))
    found = side_by_side(row, [(model, named, wanted, known_prices.get(named[0])) for model, named in pairs])
    rows: list[dict[str, Any]] = []
    with progress("planning", len(pairs), "plans") as shown:
        for model, named in pairs:
            shown.note(f"{model} on {named[0]}")
            rows.append(next(found))
            shown.advance()
    rows.sort(key=lambda found: (models.index(found["model"]), _order(found, bool(known_prices))))
    if plot_file is not None:
        _draw(rows, wanted, plot_file, bool(known_prices))
    if as_json:
        click.echo(json.dumps({"rows": rows}))
    else:
        print_machines(table_console(), rows)


def prices_of(texts: Sequence[str]) -> dict[str, float]:
    """Prices of an hour by machine; a usage error for what is not MACHINE=PRICE with a finite price of at least 0."""
    prices = {}
    for text in texts:
        name, _, price = text.rpartition("=")
        try:
            amount = float(price)
        except ValueError:
            amount = math.nan
        if not name or not 0 <= amount < math.inf:
            raise click.UsageError(f"--price-per-hour must be MACHINE=PRICE, found {text!r}")
        prices[name] = amount
    return prices


def row(model: str, named: "tuple[str, Machine]", wanted: "PlanRequest", price: float | None) -> dict[str, Any]:
    """What one machine makes of one model: figures by name; where nothing fits all are None but `problem`."""
    from flexref.cli.show.plan_report import in_short
    from flexref.machine.price import cost_per_million_tokens, written_bytes_per_million_tokens
    from flexref.planner.plan import plan

    name, machine = named
    found: dict[str, Any] = {"model": model, "machine": name, "price_per_hour": price}
    try:
        best = plan(model, machine, wanted).best
    except (CapacityError, PolicyError) as error:
        return {**found, **dict.fromkeys(FIGURES), "problem": str(error)}
    prediction = best.prediction
    assert prediction is not None
    written = written_bytes_per_million_tokens(prediction.disk_write_bytes, prediction.generated_tokens)
    cost = None if price is None else cost_per_million_tokens(prediction.tokens_per_s, price)
    figures = (prediction.tokens_per_s, cost, written, best.to_json()["policy"], in_short(best))
    return {**found, **dict(zip(FIGURES, figures, strict=True)), "problem": None}


def _order(found: dict[str, Any], by_cost: bool) -> tuple[bool, bool, float, float]:
    """The cheapest, or the fastest, first; then what has no price, and last what does not fit."""
    cost, tokens_per_s = found["cost_per_million_tokens"], found["tokens_per_s"]
    priced = by_cost and cost is not None
    return tokens_per_s is None, by_cost and cost is None, cost if priced else 0.0, -(tokens_per_s or 0.0)


def _draw(rows: Sequence[dict[str, Any]], wanted: "PlanRequest", path: str, by_cost: bool) -> None:
    from flexref.cli.show.plot_titles import plan_title
    from flexref.cli.show.plots import draw_machines

    key = "cost_per_million_tokens" if by_cost else "tokens_per_s"
    ticks = {found["machine"]: _tick(found["machine"]) for found in rows}
    if len(set(ticks.values())) < len(ticks):  # files of one name in two folders
        ticks = {machine: machine for machine in ticks}
    points: list[tuple[str, str, float | str]] = []
    for found in rows:
        why = "no price was given" if found["problem"] is None else "cannot run it"
        points.append((ticks[found["machine"]], found["model"], why if found[key] is None else found[key]))
    models = ", ".join(dict.fromkeys(_tick(found["model"]) for found in rows))
    what = "Cost of a million tokens" if by_cost else "Tokens per second"
    unit = COST_UNIT if by_cost else SPEED_UNIT
    draw_machines(plan_title(f"{what}: {models}", wanted), points, path, unit)


def _tick(name: str) -> str:
    """A machine's or a model's name as it stands in a plot: of a file its own name."""
    return Path(name).stem if name.endswith((".json", ".h5")) else name
