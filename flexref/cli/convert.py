"""`flexref convert`: a weight file from a Hugging Face folder; it parses, calls one function and prints."""

import json
import time

import click

from flexref.cli.progress import byte_bar
from flexref.errors import in_gib


@click.command("convert")
@click.argument("hf_dir", metavar="HF_DIR")
@click.argument("out", metavar="OUT.h5")
@click.option(
    "--quantize",
    "scheme",
    type=click.Choice(["int4", "none"]),
    default="int4",
    show_default=True,
    help="int4 stores the matrices of the decoder layers in 4-bit groups; none stores all as it is.",
)
@click.option(
    "--group-size",
    type=click.IntRange(1, 1 << 16),
    default=64,
    show_default=True,
    help="Neighbours that share scale and zero in int4.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of what is not quantized, and of scales and zeros.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(hf_dir: str, out: str, scheme: str, group_size: int, dtype: str, as_json: bool) -> None:
    """Make the weight file OUT.h5 from the OPT model in the Hugging Face folder HF_DIR.

    The folder holds config.json, the weights (model.safetensors or pytorch_model.bin, whole or in shards with an index)
    and, if it has one, a tokenizer (tokenizer.json, or vocab.json and merges.txt); without one, prompts are token ids.
    Memory stays small whatever the model's size, and OUT.h5 appears only when all of it is on the disk.
    """
    from flexref.storage.convert import convert
    from flexref.storage.hf import open_checkpoint
    from flexref.text.tokenizer import tokenizer_json_from_files

    open_checkpoint(hf_dir)  # so that a folder that is no OPT is told as that, whatever its tokenizer is
    tokenizer = tokenizer_json_from_files(hf_dir)
    started = time.perf_counter()
    with byte_bar("converting") as on_progress:
        done = convert(hf_dir, out, scheme, group_size, dtype, tokenizer, on_progress)
    elapsed = time.perf_counter() - started
    report = {
        "file": done.path,
        "model": done.spec.name,
        "scheme": scheme,
        "group_size": group_size if scheme == "int4" else None,
        "dtype": dtype,
        "parameters": done.spec.parameters,
        "tokenizer_bytes": len(tokenizer or b""),
        "source_bytes": done.source_bytes,
        "file_bytes": done.file_bytes,
        "fp16_bytes": 2 * done.spec.parameters,
        "elapsed_s": elapsed,
        "ignored_tensors": list(done.ignored),
    }
    if done.ignored:
        click.echo(
            f"ignored {len(done.ignored)} tensors that this model has no use for: {done.ignored[0]} ...", err=True
        )
    if tokenizer is None:
        click.echo("the folder has no tokenizer: prompts for this file are token ids", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    stored = f"int4 in groups of {group_size}" if scheme == "int4" else dtype
    click.echo(
        f"{done.path}: {done.spec.name}, {stored}, {in_gib(done.file_bytes)} "
        f"(fp16 {in_gib(2 * done.spec.parameters)}) in {elapsed:.1f} s"
    )
