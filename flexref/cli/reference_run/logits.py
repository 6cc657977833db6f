"""`flexref logits`: a reference run to check another engine with; it parses, calls and prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.options import check_prompts, option, prompts_of
from flexref.cli.reference_run import DTYPES
from flexref.cli.show.progress import progress
from flexref.cli.streams import printable

if TYPE_CHECKING:
    from flexref.check.logits import Job

DTYPE_HELP = "What engines store results as whose bounds are computed; give it once or more; default: all three."


@click.command("logits")
@option("--model")
@option("--prompt", help="A row of text.")
@option("--input", help="Rows, one a line, or JSON lines with `prompt`, as text or token ids; -: standard input.")
@click.option(
    "--positions",
    type=click.IntRange(1, 1 << 24),
    metavar="N",
    help="Write the logits of every row's last N tokens only.",
)
@option("--dtype", names=("dtypes",), type=click.Choice(DTYPES), multiple=True, help=DTYPE_HELP)
@option("--output", required=True, help="The reference, an .npz file.")
@option("--force")
@option("--json")
def command(
    model: str, positions: int | None, dtypes: tuple[str, ...], output_file: str, as_json: bool, **given: Any
) -> None:
    """Compute the logits after every token of some rows in float64, and how far another engine may be from each.

    The rows are fed as they are: nothing is generated. For an engine that sums in float32 and stores results as one of
    the types, the bound of each logit holds whatever the order of its sums, if its roundings are independent;
    `flexref compare-logits` asks it. Every bound takes as long as nine runs in float64. The file has 8 bytes for each
    logit, and 4 for each bound.
    """
    check_prompts(given)

    from flexref.check.logits import stage_count
    from flexref.check.logits_reference import reference_bytes, write_reference
    from flexref.cli.show.outputs import check_outputs
    from flexref.errors import how_many, in_gib

    texts, path = given["prompts"], given["input_file"]
    check_outputs({"-o": output_file}, (model, path), force=given["force"])
    chosen = tuple(dtype for dtype in DTYPES if dtype in dtypes) or DTYPES
    job, record_ids = _job(model, texts, path, positions)
    with progress("stages", stage_count(job, chosen), "stages") as shown:
        about = write_reference(output_file, job, record_ids, chosen, shown.advance)
    if as_json:
        row_figures = [{"id": row.record_id, "tokens": row.tokens, "positions": row.positions} for row in about.rows]
        found = {
            "output": output_file,
            "model": about.model,
            "checksum": about.checksum,
            "vocabulary": about.vocabulary,
            "dtypes": list(about.dtypes),
            "rows": row_figures,
        }
        click.echo(json.dumps(found))
    else:
        count = sum(row.positions for row in about.rows)
        click.echo(
            f"{output_file}: logits of {printable(about.model)} at {how_many(count, 'position')} of "
            f"{how_many(len(about.rows), 'row')}, with bounds for {', '.join(about.dtypes)}, "
            f"{in_gib(reference_bytes(job, chosen))}"
        )


def _job(
    model: str, texts: tuple[str, ...], path: str | None, positions: int | None
) -> "tuple[Job, list[str | int | None]]":
    """What is asked for, and what its rows are called."""
    from flexref.check.logits import Job
    from flexref.errors import PromptError
    from flexref.storage.names import resolve
    from flexref.storage.weightfile import open_weight_file
    from flexref.text.prompts import encoded
    from flexref.text.tokenizer import Tokenizer

    file = open_weight_file(resolve(model))
    spec, prompts = file.spec, prompts_of(texts, path, file.spec.vocabulary)
    needs_tokenizer = file.tokenizer_json is not None and any(prompt.text is not None for prompt in prompts)
    tokenizer = Tokenizer.from_json(file.tokenizer_json or b"", file.path) if needs_tokenizer else None
    rows = [
        encoded(prompt, tokenizer, spec.vocabulary, spec.positions, number)
        for number, prompt in enumerate(prompts, start=1)
    ]
    for number, row in enumerate(rows, start=1):
        if len(row) > spec.positions:
            raise PromptError(
                f"prompt {number}: {len(row)} tokens are too many: the model has {spec.positions} positions"
            )
    firsts = [0 if positions is None else max(0, len(row) - positions) for row in rows]
    return Job(file, rows, firsts), [prompt.record_id for prompt in prompts]
