"""`flexref plan`: the best policy for a model on a machine, what it will take and cost; parses, calls, prints."""

import json
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import MODEL, TEXT, Amount
from flexref.cli.completion import files, sizes
from flexref.cli.options import computing_port, option
from flexref.cli.plan_options import plan_options, plan_request_of
from flexref.files import write_text

if TYPE_CHECKING:
    from flexref.machine.machine import Machine
    from flexref.planner.plan import Plan

MACHINE_HELP = "A machine's file, or the name of a known one; default: this machine, measured once and kept."


LOG = logging.getLogger(__name__)


@click.command("plan")
@option(
    "--model",
    type=MODEL,
    metavar="SIZE|FILE",
    shell_complete=sizes,
    help="A size (30b, opt-175b ...) or a weight file.",
)
@option("--machine", help=MACHINE_HELP)
@option("--backend", help="The port of this machine, if no other is named.")
@plan_options
@click.option("--price-per-hour", type=Amount(), help="What the machine costs in an hour.")
@click.option("--watts", type=Amount(), help="The power that it draws: with --price-per-kwh, in place of a price.")
@click.option("--price-per-kwh", type=Amount(), help="What a kWh costs.")
@click.option("--disk-tbw", type=Amount(above=True), help="Terabytes that may be written to the drive in its life.")
@click.option(
    "--pareto",
    "pareto_file",
    type=TEXT,
    metavar="PLOT.png",
    shell_complete=files,
    help="Draw throughput against the latency of a block.",
)
@option("--trace", help="Write a trace of the simulated block, in the Trace Event format.")
@option("--output", help="Write the policy, with its reasons, as JSON.")
@option("--force")
@option("--json")
def command(model: str, as_json: bool, **options: Any) -> None:
    """Choose what of a model lies on which tier, and say what a job will take; needs no GPU and no weights.

    Every way of storing things that is allowed is searched: all rows per group and groups up to a stated bound, and for
    each the shares that a linear program finds best. Those that come near the best are simulated, pass by pass.
    """
    price = price_per_hour(options)
    check_files(model, options)

    from flexref.cli.show.outputs import tracing
    from flexref.cli.show.progress import progress
    from flexref.planner.plan import plan

    wanted = plan_request_of(options)
    with progress("measuring this machine") as shown, tracing(options["trace_file"]) as trace:
        machine = machine_of(options["machine"], options["backend"])
        shown.begin(f"planning {model} on {machine.name}")
        start = perf_counter()
        found = plan(model, machine, wanted, trace=trace)
        seconds = perf_counter() - start
    report = {**found.to_json(), **costs(found, price, options["disk_tbw"]), "plan_s": seconds}
    if options["output_file"] is not None:
        write_text(options["output_file"], json.dumps(report, indent=2) + "\n")
    if options["pareto_file"] is not None:
        from flexref.cli.show.plot_titles import plan_title
        from flexref.cli.show.plots import draw_pareto
        from flexref.planner.pareto import pareto

        with progress("looking for the best policy under several bounds on latency"):
            points = pareto(model, machine, wanted, found.best)
        title = plan_title(f"Throughput against latency: {model} on {machine.name}", wanted)
        draw_pareto(title, points, options["pareto_file"])
    if as_json:
        click.echo(json.dumps(report))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.plan_report import print_plan

    print_plan(table_console(), found, wanted.machine(machine), report)


def check_files(model: str, options: dict[str, Any]) -> None:
    """Complain before anything is planned of files that could not be written, or of plots that could not be drawn."""
    from flexref.cli.show.outputs import check_outputs
    from flexref.cli.show.plots import check_plot

    if options["pareto_file"] is not None:
        check_plot(options["pareto_file"], "--pareto")
    outputs = {"--trace": "trace_file", "-o": "output_file", "--pareto": "pareto_file"}
    given = {name: options[option] for name, option in outputs.items()}
    check_outputs(given, (model, options["machine"], options["lengths_file"]), force=options["force"])


def machine_of(name: str | None, backend: str) -> "Machine":
    """The machine of that name or file; without one, this machine with its port, measured once."""
    from flexref.machine.known import machine_named
    from flexref.profile.kept_machines import measured_machine

    if name is not None:
        return machine_named(name)
    import tempfile

    port = computing_port(backend)
    try:
        return measured_machine(port, tempfile.gettempdir(), tell=LOG.warning)
    finally:
        port.close()


def price_per_hour(options: dict[str, Any]) -> float | None:
    """The price of an hour, given as such or by power; None if neither was."""
    from flexref.machine.price import price_per_hour_of_power

    watts, per_kwh = options["watts"], options["price_per_kwh"]
    if (watts is None) != (per_kwh is None):
        raise click.UsageError("--watts and --price-per-kwh go together")
    if watts is None:
        return options["price_per_hour"]  # type: ignore[no-any-return]
    if options["price_per_hour"] is not None:
        raise click.UsageError("give --price-per-hour, or --watts and --price-per-kwh")
    return price_per_hour_of_power(watts, per_kwh)


def costs(found: "Plan", price: float | None, disk_tbw: float | None) -> dict[str, float | None]:
    """What a million generated tokens cost and write, and how long the drive lasts, as far as prices are known."""
    from flexref.machine.price import cost_per_million_tokens, disk_life_days, written_bytes_per_million_tokens

    prediction = found.best.prediction
    assert prediction is not None
    written = written_bytes_per_million_tokens(prediction.disk_write_bytes, prediction.generated_tokens)
    known: dict[str, float | None] = {"disk_written_bytes_per_million_tokens": written}
    if price is not None:
        known["cost_per_million_tokens"] = cost_per_million_tokens(prediction.tokens_per_s, price)
    if disk_tbw is not None:
        known["disk_life_days"] = disk_life_days(written, prediction.tokens_per_s, disk_tbw)
    return known
