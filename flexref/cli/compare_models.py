"""`flexref compare-models`: how far one model is from another on a text; parses, calls, prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.engine_options import counting, engine_for, engine_options
from flexref.cli.evaluate import BOS_HELP, STRIDE_HELP, WINDOW_HELP

if TYPE_CHECKING:
    from flexref.quality.compare import Comparison


@click.command("compare-models")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--text", "text_file", required=True, metavar="FILE", help="A text in UTF-8, one document.")
@click.option("--window", type=click.IntRange(min=1), help=WINDOW_HELP)
@click.option("--stride", type=click.IntRange(min=1), help=STRIDE_HELP)
@click.option("--bos", type=click.Choice(["first", "every"]), default="first", show_default=True, help=BOS_HELP)
@engine_options
@click.option("--plot", "plot_file", metavar="FILE", help="Draw the errors by layer (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(first: str, second: str, text_file: str, plot_file: str | None, as_json: bool, **options: Any) -> None:
    """Tell how far model B is from model A on a text: are its 4 bits good enough?

    A and B are weight files, or `demo`. Printed are the KL divergence of B's next-token distribution from A's, how
    often both find the same token most probable, the perplexity of both with an interval of their difference, and the
    relative error of hidden states behind every layer. --quantize-cache is B's alone, so that a model beside itself
    tells what a 4-bit cache costs. Budgets hold for each of the two; without any, each gets half of what is free.
    Beside them some 256 MiB of logits and as much of hidden states are kept on the host.
    """
    from flexref.cli.show.compare_models_plot import draw
    from flexref.cli.show.plots import check_plot
    from flexref.quality.compare import check_comparable, compare
    from flexref.quality.perplexity import read_text, sample_text

    if plot_file is not None:
        check_plot(plot_file, "--plot")
    text = read_text(text_file)
    exact = {**options, "quantize_cache": False}
    with engine_for(first, exact, share=2) as a, engine_for(second, options, share=2) as b:
        check_comparable(a, b, text)
        sample = sample_text(a, text, options["window"], options["stride"], options["bos"])
        with counting("windows", len(sample.rows)) as on_rows:
            found = compare(a, b, sample, on_rows)
        names = a.file.path, b.file.path
    if plot_file is not None:
        draw(found, plot_file)
    if as_json:
        click.echo(json.dumps({"model_a": names[0], "model_b": names[1], **found.to_json()}))
    else:
        _print(found)


def _print(found: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    figures = found.to_json()
    lines = {
        "KL(A||B)": f"mean {found.kl_mean:.3g} nats, 99th percentile {found.kl_p99:.3g}, most {found.kl_max:.3g}",
        "same top token": f"{found.same_top:.2%}",
        "perplexity": f"A {_number(figures['perplexity_a'])}, B {_number(figures['perplexity_b'])}",
        "B less A": _difference(figures["perplexity_difference"], figures["perplexity_ratio"], found),
        "protocol": str(found.protocol),
    }
    for name, line in lines.items():
        click.echo(f"{name:15} {line}")
    if not found.layers:
        click.echo(f"{'hidden states':15} not compared: the models differ in layers or width")
        return
    table = Table(title=f"Relative error of hidden states, on {found.hidden_tokens} tokens", title_justify="left")
    for heading in ("behind", "over all tokens", "median token"):
        table.add_column(heading, justify="left" if heading == "behind" else "right")
    for layer in found.layers:
        table.add_row(layer.stage, f"{layer.overall:.3g}", f"{layer.median_token:.3g}")
    Console().print(table)


def _number(value: float | None) -> str:
    return "beyond all numbers" if value is None else f"{value:.4f}"


def _difference(difference: float | None, ratio: float | None, found: "Comparison") -> str:
    if difference is None or ratio is None:
        return "beyond all numbers"
    return f"{difference:+.4f} ({ratio - 1:+.2%}); {_interval(found)}"


def _interval(found: "Comparison") -> str:
    if found.paired.interval is None:
        return "too few tokens for an interval"
    if found.interval is None:
        return "an interval beyond all numbers"
    low, high = found.interval
    return f"95 %: {low:+.4f} to {high:+.4f} ({found.to_json()['interval']})"
