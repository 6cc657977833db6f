"""How well a model does, as a few lines for people; it computes nothing."""

from typing import TYPE_CHECKING

from rich.console import Console

from flexref.cli.show.console import print_named
from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.quality.multiple_choice import Judged
    from flexref.quality.perplexity import Perplexity

NAME_WIDTH = 14
"""Letters of the longest name of a figure."""


def print_perplexity(console: Console, found: "Perplexity") -> None:
    """Print perplexity by its names, and the protocol that it was found by."""
    figures, lines = found.to_json(), []
    for name, key in (
        ("perplexity", "perplexity"),
        ("bits per byte", "bits_per_byte"),
        ("per word", "word_perplexity"),
    ):
        value = figures[key]
        if key != "perplexity" and not found.sample.nbytes:
            continue  # of token ids neither bytes nor words are known
        lines.append((name, "none" if value is None else f"{value:.4f}"))
    print_named(console, [*lines, ("protocol", str(found.sample.protocol))], NAME_WIDTH)


def print_judged(console: Console, found: "Judged") -> None:
    """Print the share of right answers with its interval, and how they were judged."""
    figures, lines = found.to_json(), []
    for name, key in (("accuracy", "accuracy"), ("per character", "normalized_accuracy")):
        if key in figures:
            low, high = figures[f"{key}_ci95"]
            lines.append((name, f"{figures[key]:.4f}  (95 %: {low:.4f} to {high:.4f})"))
    protocol = (
        f"{how_many(figures['questions'], 'question')} of the layout {found.layout}, no shots, judged by "
        f"{figures['protocol']['criterion']}; {how_many(found.cut, 'row')} cut to the model's positions"
    )
    print_named(console, [*lines, ("protocol", protocol)], NAME_WIDTH)
