"""`flexref inspect`: what a weight file holds; it parses, calls one function and prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.architecture.stages import parameters
from flexref.cli.arguments import WEIGHT_FILE
from flexref.cli.completion import weight_files
from flexref.cli.options import option
from flexref.errors import CheckpointError, WeightFileError

if TYPE_CHECKING:
    from flexref.storage.weightfile import WeightFile


@click.command("inspect")
@click.argument("file", type=WEIGHT_FILE, metavar="FILE", shell_complete=weight_files)
@option("--json")
def command(file: str, as_json: bool) -> None:
    """List what the weight file FILE (or `demo`, the built-in model) holds.

    Prints the model, whether it has a chat template, then every tensor in file order: name, shape, scheme, bytes, and
    the bytes that it would take in fp16. Checks all that the file's metadata can tell; `flexref verify` checks the data
    too.
    """
    from flexref.cli.show.inspect_report import print_tensors
    from flexref.storage.names import resolve
    from flexref.storage.weightfile import read_layout

    report = _report(read_layout(resolve(file)))
    if as_json:
        click.echo(json.dumps(report))
        return
    print_tensors(report)


def _chat_template_bytes(found: "WeightFile") -> int | None:
    """Bytes of the model's chat template, 0 if it has none; None if its tokenizer is damaged, as `verify` will say."""
    from flexref.storage.weightfile import read_part
    from flexref.text.chat_document import chat_in

    if found.tokenizer is None:
        return 0
    try:
        chat = chat_in(read_part(found.tokenizer).tobytes(), found.path)
    except (CheckpointError, WeightFileError):
        return None
    return 0 if chat is None else len(chat["template"].encode())


def _report(found: "WeightFile") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "file": found.path,
        "model": asdict(found.spec),
        "scheme": found.scheme,
        "group_size": found.group_size,
        "dtype": found.dtype,
        "tile_rows": found.tile_rows,
        "tokenizer_bytes": 0 if found.tokenizer is None else found.tokenizer.extent.nbytes,
        "chat_template_bytes": _chat_template_bytes(found),
        "parameters": parameters(found.spec),
        "stored_bytes": found.nbytes,
        "fp16_bytes": 2 * parameters(found.spec),
        "file_bytes": found.file_bytes,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "scheme": tensor.scheme,
                "offset_bytes": tensor.parts[0].extent.offset,
                "stored_bytes": tensor.nbytes,
                "fp16_bytes": 2 * tensor.elements,
            }
            for tensor in found.tensors.values()
        ],
    }
