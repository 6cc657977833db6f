"""`flexref eval`: perplexity of a text, or accuracy on questions, by the engine; parses, calls, prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.engine_options import counting, engine_for, engine_options

if TYPE_CHECKING:
    from flexref.engine.engine import Engine
    from flexref.engine.scoring import Scores
    from flexref.quality.multiple_choice import Judged
    from flexref.quality.perplexity import Perplexity

WINDOW_HELP = "Tokens of a window; default: the model's positions."
STRIDE_HELP = "From one window to the next; default: half a window."
BOS_HELP = "The token that begins a text: before the first token of all, or before every window."
CHOICES_HELP = "Questions in JSON lines, as LAMBADA, HellaSwag and MMLU are distributed."


@click.command("eval")
@click.option("--model", required=True, metavar="FILE|demo", help="A weight file, or the built-in model.")
@click.option("--text", "text_file", metavar="FILE", help="A text in UTF-8, one document: its perplexity.")
@click.option("--choices", "choices_file", metavar="FILE", help=CHOICES_HELP)
@click.option("--window", type=click.IntRange(min=1), help=WINDOW_HELP)
@click.option("--stride", type=click.IntRange(min=1), help=STRIDE_HELP)
@click.option("--bos", type=click.Choice(["first", "every"]), default="first", show_default=True, help=BOS_HELP)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, text_file: str | None, choices_file: str | None, as_json: bool, **options: Any) -> None:
    """Measure a model: perplexity of a text, or how many questions it answers by log-likelihood.

    A text is cut into sliding windows, and every token is scored once, behind all that stands before it in its window;
    the protocol is printed beside the figure, which says nothing without it. Of questions the most probable choice is
    the answer, of a text without choices the last word must be what the model would say. Nothing is shown to the model
    beside the question (no shots).
    """
    if (text_file is None) == (choices_file is None):
        raise click.UsageError("give either --text or --choices")
    if choices_file is not None and (options["window"] or options["stride"] or options["bos"] != "first"):
        raise click.UsageError("--window, --stride and --bos belong to --text")
    if text_file is not None:
        _perplexity(model, text_file, options, as_json)
    elif choices_file is not None:
        _choices(model, choices_file, options, as_json)


def _perplexity(model: str, text_file: str, options: dict[str, Any], as_json: bool) -> None:
    from flexref.quality.perplexity import perplexity, read_text, sample_text

    text = read_text(text_file)
    with engine_for(model, options) as engine:
        sample = sample_text(engine, text, options["window"], options["stride"], options["bos"])
        with counting("windows", len(sample.rows)) as on_rows:
            found = perplexity(engine, sample, on_rows)
        _show(found.to_json(), found.scores, engine, as_json)
    if not as_json:
        _print_perplexity(found)


def _choices(model: str, choices_file: str, options: dict[str, Any], as_json: bool) -> None:
    from flexref.quality.multiple_choice import judge
    from flexref.quality.questions import read_questions

    questions = read_questions(choices_file)
    with engine_for(model, options) as engine:
        with counting("choices", sum(len(question.choices) for question in questions)) as on_rows:
            found = judge(engine, questions, on_rows)
        _show(found.to_json(), found.scores, engine, as_json)
    if not as_json:
        _print_judged(found)


def _show(figures: dict[str, Any], scores: "Scores", engine: "Engine", as_json: bool) -> None:
    """All figures as JSON on stdout, or the tables of tiers and links on stderr."""
    from rich.console import Console

    from flexref.cli.show.report import print_tables

    if as_json:
        about = {"model": engine.file.path, "weights_scheme": engine.file.scheme}
        click.echo(json.dumps({**figures, **about, "stats": scores.stats_to_json()}))
        return
    print_tables(Console(stderr=True), scores.stats)


def _print_perplexity(found: "Perplexity") -> None:
    figures = found.to_json()
    for name, key in (
        ("perplexity", "perplexity"),
        ("bits per byte", "bits_per_byte"),
        ("per word", "word_perplexity"),
    ):
        value = figures[key]
        click.echo(f"{name:14} {'none' if value is None else f'{value:.4f}'}")
    click.echo(f"{'protocol':14} {found.sample.protocol}")


def _print_judged(found: "Judged") -> None:
    figures = found.to_json()
    for name, key in (("accuracy", "accuracy"), ("per character", "normalized_accuracy")):
        if key in figures:
            low, high = figures[f"{key}_ci95"]
            click.echo(f"{name:14} {figures[key]:.4f}  (95 %: {low:.4f} to {high:.4f})")
    click.echo(
        f"{'protocol':14} {figures['questions']} questions of the layout {found.layout}, no shots, judged by "
        f"{figures['protocol']['criterion']}; {found.cut} row(s) cut to the model's positions"
    )
