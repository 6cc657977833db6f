"""`flexref inspect`: what a weight file holds; it parses, calls one function and prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.errors import in_gib

if TYPE_CHECKING:
    from flexref.storage.weightfile import WeightFile


@click.command("inspect")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: str, as_json: bool) -> None:
    """List what the weight file FILE (or `demo`, the built-in model) holds.

    Prints the model, then every tensor in file order: name, shape, scheme, bytes, and the bytes that it would take in
    fp16. Checks all that the file's metadata can tell; `flexref verify` checks the data too.
    """
    from flexref.storage.weightfile import read_layout, resolve

    report = _report(read_layout(resolve(file)))
    if as_json:
        click.echo(json.dumps(report))
        return
    for line in _lines(report):
        click.echo(line)


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
        "parameters": found.spec.parameters,
        "stored_bytes": found.nbytes,
        "fp16_bytes": 2 * found.spec.parameters,
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


def _printable(name: str) -> str:
    """A name that a file gives itself, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _lines(report: dict[str, Any]) -> list[str]:
    """The report as text: what the model is, a table of its tensors, and the sums."""
    model = report["model"]
    groups = f" in groups of {report['group_size']}" if report["group_size"] else ""
    tokenizer = in_gib(report["tokenizer_bytes"]) if report["tokenizer_bytes"] else "none, prompts are token ids"
    name = _printable(model["name"])
    lines = [
        f"file       {report['file']}, {in_gib(report['file_bytes'])}",
        f"model      {name}: {model['layers']} layers, width {model['width']}, {model['heads']} heads, "
        f"vocabulary {model['vocabulary']}, {model['positions']} positions",
        f"scheme     {report['scheme']}{groups}, else {report['dtype']}",
        f"tokenizer  {tokenizer}",
        "",
    ]
    rows = [("tensor", "shape", "scheme", "bytes", "fp16 bytes")]
    for tensor in report["tensors"]:
        shape = " x ".join(str(length) for length in tensor["shape"])
        scheme = report["dtype"] if tensor["scheme"] == "none" else tensor["scheme"]
        rows.append((tensor["name"], shape, scheme, f"{tensor['stored_bytes']:,}", f"{tensor['fp16_bytes']:,}"))
    rows.append(("sum", "", "", f"{report['stored_bytes']:,}", f"{report['fp16_bytes']:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, shape, scheme, stored, fp16 in rows:
        left = f"{name:{widths[0]}}  {shape:>{widths[1]}}  {scheme:{widths[2]}}"
        lines.append(f"{left}  {stored:>{widths[3]}}  {fp16:>{widths[4]}}")
    return lines
