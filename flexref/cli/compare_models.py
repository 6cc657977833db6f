"""`flexref compare-models`: how far one model is from another on a text; parses, calls, prints."""

import json
from typing import Any

import click

from flexref.cli.arguments import WEIGHT_FILE
from flexref.cli.completion import weight_files
from flexref.cli.options import check_windows, engine_for, option, options, scoring_options
from flexref.cli.show.progress import progress


@click.command("compare-models")
@click.argument("first", type=WEIGHT_FILE, metavar="A", shell_complete=weight_files)
@click.argument("second", type=WEIGHT_FILE, metavar="B", shell_complete=weight_files)
@option("--text", help="A text in UTF-8, one document.")
@option("--tokens")
@options("--window", "--stride", "--bos")
@scoring_options
@option("--plot", help="Draw the errors by layer (.png, .svg, .pdf).")
@option("--force")
@option("--json")
def command(
    first: str, second: str, text_file: str | None, tokens_file: str | None, as_json: bool, **given: Any
) -> None:
    """Tell how far model B is from model A on a text: are its 4 bits good enough?

    A and B are weight files, or `demo`. Printed are the KL divergence of B's next-token distribution from A's, how
    often both find the same token most probable, the perplexity of both with an interval of their difference, and the
    relative error of hidden states after every layer. --quantize-cache is B's alone, so that a model beside itself
    tells what a 4-bit cache costs. Budgets hold for each of the two; without any, each gets half of what is free.
    Beside them some 256 MiB of logits and as much of hidden states are kept on the host.
    """
    if (text_file is None) == (tokens_file is None):
        raise click.UsageError("give either --text or --tokens")
    check_windows(given)
    plot_file = given["plot_file"]
    if plot_file is not None:
        from flexref.cli.show.outputs import check_outputs
        from flexref.cli.show.plots import check_plot

        check_plot(plot_file, "--plot")
        check_outputs(
            {"--plot": plot_file}, (first, second, text_file, tokens_file, given["policy"]), force=given["force"]
        )

    from flexref.cli.show.compare_models_plot import draw
    from flexref.cli.show.compare_models_report import print_comparison
    from flexref.cli.show.console import table_console
    from flexref.cli.show.plot_titles import comparison_title
    from flexref.quality.compare import check_comparable, compare
    from flexref.quality.perplexity import read_text, sample_text, sample_tokens
    from flexref.quality.token_file import read_tokens

    text = None if text_file is None else read_text(text_file)
    ids = () if tokens_file is None else read_tokens(tokens_file)
    how = given["window"], given["stride"], given["bos"]
    exact = {**given, "quantize_cache": False}
    with (
        progress("preparing") as shown,
        engine_for(first, exact, shown, share=2) as a,
        engine_for(second, given, shown, share=2) as b,
    ):
        check_comparable(a, b, text)
        sample = sample_tokens(a, ids, *how) if text is None else sample_text(a, text, *how)
        shown.begin("windows", len(sample.rows), "windows")
        found = compare(a, b, sample, shown.advance)
        names = a.file.path, b.file.path
    if plot_file is not None:
        draw(comparison_title(*names, found), found, plot_file)
    if as_json:
        click.echo(json.dumps({"model_a": names[0], "model_b": names[1], **found.to_json()}))
    else:
        print_comparison(table_console(), found)
