"""`flexref eval`: perplexity of a text, or accuracy on questions, by the engine; parses, calls, prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import TEXT
from flexref.cli.completion import files
from flexref.cli.logs import shows_progress
from flexref.cli.options import check_windows, engine_for, option, options, scoring_options
from flexref.cli.process import whole_time
from flexref.cli.show.outputs import check_outputs, tracing
from flexref.cli.show.progress import progress

if TYPE_CHECKING:
    from flexref.engine.engine import Engine
    from flexref.engine.scoring import Scores

CHOICES_HELP = "Questions in JSON lines, as LAMBADA, HellaSwag and MMLU are distributed."


@click.command("eval")
@option("--model")
@option("--text", help="A text in UTF-8, one document: its perplexity.")
@option("--tokens")
@click.option("--choices", "choices_file", type=TEXT, metavar="FILE", shell_complete=files, help=CHOICES_HELP)
@options("--window", "--stride", "--bos")
@scoring_options
@option("--trace", help="Write a trace of every copy and computation, in the Trace Event format.")
@option("--force")
@option("--json")
def command(
    model: str,
    text_file: str | None,
    tokens_file: str | None,
    choices_file: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure a model: perplexity of a text, or how many questions it answers by log-likelihood.

    A text is cut into sliding windows, and every token is scored once, after all that stands before it in its window;
    the protocol is printed beside the figure, which says nothing without it. Of questions the most probable choice is
    the answer, of a text without choices the last word must be what the model would say. Nothing is shown to the model
    beside the question (no shots). Token ids are for models without a tokenizer, and have figures per token alone.
    """
    if [text_file, tokens_file, choices_file].count(None) != 2:
        raise click.UsageError("give one of --text, --tokens and --choices")
    if choices_file is not None and (given["window"] or given["stride"] or given["bos"] != "first"):
        raise click.UsageError("--window, --stride and --bos belong to --text and --tokens")
    check_windows(given)
    inputs = (model, text_file, tokens_file, choices_file, given["policy"])
    check_outputs({"--trace": given["trace_file"]}, inputs, force=given["force"])
    if text_file is not None or tokens_file is not None:
        _perplexity(model, text_file, tokens_file, given, as_json)
    elif choices_file is not None:
        _choices(model, choices_file, given, as_json)


def _perplexity(
    model: str, text_file: str | None, tokens_file: str | None, given: dict[str, Any], as_json: bool
) -> None:
    from flexref.cli.show.console import table_console
    from flexref.cli.show.evaluate_report import print_perplexity
    from flexref.engine.wall import WallPart
    from flexref.quality.perplexity import perplexity, read_text, sample_text, sample_tokens
    from flexref.quality.token_file import read_tokens

    wall = whole_time()
    wall.turn_to(WallPart.OTHER)
    text = None if text_file is None else read_text(text_file)
    ids = () if tokens_file is None else read_tokens(tokens_file)
    how = given["window"], given["stride"], given["bos"]
    with (
        tracing(given["trace_file"]) as trace,
        progress("preparing") as shown,
        engine_for(model, given, shown, wall=wall) as engine,
    ):
        sample = sample_tokens(engine, ids, *how) if text is None else sample_text(engine, text, *how)
        shown.begin("windows", len(sample.rows), "windows")
        found = perplexity(engine, sample, shown.advance, trace)
        shown.stop()
        _show(found.to_json(), found.scores, engine, as_json)
        if not as_json:
            print_perplexity(table_console(), found)


def _choices(model: str, choices_file: str, given: dict[str, Any], as_json: bool) -> None:
    from flexref.cli.show.console import table_console
    from flexref.cli.show.evaluate_report import print_judged
    from flexref.engine.wall import WallPart
    from flexref.quality.multiple_choice import judge
    from flexref.quality.questions import read_questions

    wall = whole_time()
    wall.turn_to(WallPart.OTHER)
    questions = read_questions(choices_file)
    with (
        tracing(given["trace_file"]) as trace,
        progress("preparing") as shown,
        engine_for(model, given, shown, wall=wall) as engine,
    ):
        shown.begin("choices", sum(len(question.choices) for question in questions), "choices")
        found = judge(engine, questions, shown.advance, trace)
        shown.stop()
        _show(found.to_json(), found.scores, engine, as_json)
        if not as_json:
            print_judged(table_console(), found)


def _show(figures: dict[str, Any], scores: "Scores", engine: "Engine", as_json: bool) -> None:
    """All figures as JSON on stdout, or the tables of tiers and links on stderr."""
    from flexref.cli.show.console import table_console
    from flexref.cli.show.report import prefixes_in_words, print_tables, print_whole_time

    if as_json:
        about = {"model": engine.file.path, "weights_scheme": engine.file.scheme}
        click.echo(json.dumps({**figures, **about, "stats": scores.stats_to_json()}))
        return
    if shows_progress():
        print_tables(table_console(err=True), scores.stats)
        for line in prefixes_in_words(scores.stats):
            table_console(err=True).print(line)
        print_whole_time(table_console(err=True), scores.stats)
