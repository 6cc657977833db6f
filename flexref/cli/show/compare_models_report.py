"""How far one model is from another as text and a table for people; it computes nothing."""

from typing import TYPE_CHECKING

from rich.console import Console

from flexref.cli.show.console import FilledTable, print_named
from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.quality.compare import Comparison

NAME_WIDTH = 15
"""Letters of the longest name of a figure."""


def print_comparison(console: Console, found: "Comparison") -> None:
    """Print the figures, then the errors of hidden states, where the two models have the same layers."""
    figures = found.to_json()
    lines = [
        ("KL(A||B)", f"mean {found.kl_mean:.3g} nats, 99th percentile {found.kl_p99:.3g}, most {found.kl_max:.3g}"),
        ("same top token", f"{found.same_top:.2%}"),
        ("perplexity", f"A {_number(figures['perplexity_a'])}, B {_number(figures['perplexity_b'])}"),
        ("B less A", _difference(figures["perplexity_difference"], figures["perplexity_ratio"], found)),
        ("protocol", str(found.protocol)),
    ]
    if not found.layers:
        lines.append(("hidden states", "not compared: the models differ in layers or width"))
    print_named(console, lines, NAME_WIDTH)
    if found.layers:
        title = f"Relative errors, {how_many(found.hidden_tokens, 'token')}"
        rows = [(layer.stage, f"{layer.overall:.3g}", f"{layer.median_token:.3g}") for layer in found.layers]
        console.print(FilledTable(title, ("after", "over all tokens", "median token"), rows))


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
