"""`flexref convert`: a weight file from a folder or another weight file; it parses, calls one function and prints."""

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import click

from flexref.architecture.stages import parameters
from flexref.cli.arguments import TEXT
from flexref.cli.completion import files, weight_files
from flexref.cli.options import option, was_given
from flexref.cli.show.outputs import check_replaced
from flexref.cli.show.progress import progress
from flexref.cli.show.stage import BYTES
from flexref.cli.streams import printable
from flexref.errors import PromptError, how_many, in_gib

if TYPE_CHECKING:
    from flexref.storage.convert import Conversion

LOG = logging.getLogger(__name__)


@click.command("convert")
@click.argument("source", type=TEXT, metavar="SOURCE", shell_complete=weight_files)
@click.argument("out", type=TEXT, metavar="OUT.h5", shell_complete=files)
@click.option(
    "--quantize",
    "scheme",
    type=click.Choice(["int4", "int4-mse", "int8", "none"]),
    default="none",
    show_default=True,
    help="How the matrices of the decoder layers are stored: as they are (none), in groups of 4-bit codes from a "
    "group's least to its greatest value (int4) or with the least squared error (int4-mse), or of 8-bit codes (int8).",
)
@click.option(
    "--calibrate",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Convert for texts like this one (UTF-8, 10,000 words or more): a 4-bit cache loses less, with any weights, "
    "and 4-bit codes are chosen by what they do to it (scheme int4-calibrated). Slow: the model runs over the text.",
)
@click.option(
    "--group-size",
    type=click.IntRange(1, 1 << 16),
    default=64,
    show_default=True,
    help="Neighbours that share scale and zero; the kernels are fastest for 32, 64 and 128.",
)
@option(
    "--dtype",
    default="float16",
    show_default=True,
    help="Type of what is not quantized, and of scales and zeros.",
)
@option("--force")
@option("--json")
def command(source: str, out: str, calibrate: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Make the weight file OUT.h5 from the OPT model SOURCE: a Hugging Face folder, or a weight file of scheme none.

    The folder holds config.json, the weights (model.safetensors or pytorch_model.bin, whole or in shards with an index)
    and, if it has one, a tokenizer (tokenizer.json, or vocab.json and merges.txt); without one, prompts are token ids.
    A chat template (chat_template.jinja, or in tokenizer_config.json) comes along. The built-in model, `demo`, is a
    weight file of scheme none. Memory stays small whatever the model's size, with --calibrate some twelve times that of
    one layer in float32, and OUT.h5 appears only when all of it is on the disk.
    """
    context = click.get_current_context()
    if was_given(context, "group_size") and not was_given(context, "scheme"):
        raise click.UsageError("--group-size is that of quantized weights: give --quantize int4 or int8 with it")
    check_replaced({"OUT.h5": out}, (source, calibrate), force=force)

    from flexref.storage.convert import convert

    scheme, group_size, dtype = given["scheme"], given["group_size"], given["dtype"]
    tokenizer = _tokenizer_of(source)
    started = time.perf_counter()
    with progress("converting", unit=BYTES) as shown:
        if calibrate is None:
            done = convert(source, out, scheme, group_size, dtype, tokenizer, shown.reach)
        else:
            from flexref.calibration.calibrate import SCHEME, CalibrationSample, convert_calibrated
            from flexref.quality.perplexity import read_text

            if tokenizer is None:
                raise PromptError(f"{source} has no tokenizer, so that no text can calibrate it")
            scheme, sample = (
                SCHEME if scheme.startswith("int4") else scheme,
                CalibrationSample(read_text(calibrate), tokenizer),
            )
            done = convert_calibrated(source, out, sample, scheme, group_size, dtype, shown.reach)
    elapsed = time.perf_counter() - started
    groups = None if scheme == "none" else group_size
    report = {
        "file": done.path,
        "model": done.spec.name,
        "scheme": scheme,
        "group_size": groups,
        "dtype": dtype,
        "parameters": parameters(done.spec),
        "tokenizer_bytes": len(tokenizer or b""),
        "source_bytes": done.source_bytes,
        "file_bytes": done.file_bytes,
        "fp16_bytes": 2 * parameters(done.spec),
        "elapsed_s": elapsed,
        "rounding": None if done.rounding is None else done.rounding.to_json(),
        "ignored_tensors": list(done.ignored),
    }
    _complain(done, source, tokenizer is None)
    if as_json:
        click.echo(json.dumps(report))
        return
    stored = f"{dtype}, not quantized" if groups is None else f"{scheme} in groups of {groups}"
    click.echo(
        f"{done.path}: {printable(done.spec.name)}, {stored}, {in_gib(done.file_bytes)} "
        f"(fp16 {in_gib(2 * parameters(done.spec))}) in {elapsed:.1f} s"
    )


def _tokenizer_of(source: str) -> bytes | None:
    """The tokenizer's document, in the folder or in the weight file."""
    from flexref.storage.checkpoint.folder import open_checkpoint
    from flexref.storage.convert import is_weight_file
    from flexref.storage.names import resolve
    from flexref.storage.weightfile import open_weight_file
    from flexref.text.tokenizer import tokenizer_json_from_files

    if is_weight_file(source):
        return open_weight_file(resolve(source)).tokenizer_json
    open_checkpoint(source)  # so that a folder that is no OPT is told as that, whatever its tokenizer is
    return tokenizer_json_from_files(source)


def _complain(done: "Conversion", source: str, no_tokenizer: bool) -> None:
    """Tell on stderr what the file lacks, or has no use for."""
    if done.ignored:
        ignored = how_many(len(done.ignored), "tensor")
        LOG.warning("ignored %s that this model has no use for: %s ...", ignored, done.ignored[0])
    if done.rounding is not None:
        LOG.warning("%s", done.rounding)
    if no_tokenizer:
        LOG.warning("%s has no tokenizer: prompts for this file are token ids", source)
