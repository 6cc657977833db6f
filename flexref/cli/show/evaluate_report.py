"""How well a model does, as a few lines for people; it computes nothing."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flexref.quality.multiple_choice import Judged
    from flexref.quality.perplexity import Perplexity


def print_perplexity(found: "Perplexity") -> None:
    """Print perplexity by its names, and the protocol that it was found by."""
    figures = found.to_json()
    for name, key in (
        ("perplexity", "perplexity"),
        ("bits per byte", "bits_per_byte"),
        ("per word", "word_perplexity"),
    ):
        value = figures[key]
        if key != "perplexity" and not found.sample.nbytes:
            continue  # of token ids neither bytes nor words are known
        click.echo(f"{name:14} {'none' if value is None else f'{value:.4f}'}")
    click.echo(f"{'protocol':14} {found.sample.protocol}")


def print_judged(found: "Judged") -> None:
    """Print the share of right answers with its interval, and how they were judged."""
    figures = found.to_json()
    for name, key in (("accuracy", "accuracy"), ("per character", "normalized_accuracy")):
        if key in figures:
            low, high = figures[f"{key}_ci95"]
            click.echo(f"{name:14} {figures[key]:.4f}  (95 %: {low:.4f} to {high:.4f})")
    click.echo(
        f"{'protocol':14} {figures['questions']} questions of the layout {found.layout}, no shots, judged by "
        f"{figures['protocol']['criterion']}; {found.cut} row(s) cut to the model's positions"
    )
