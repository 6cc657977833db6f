"""What a weight file holds, as a table for people; it reads no file."""

from collections.abc import Mapping
from typing import Any

import click

from flexref.cli.streams import printable
from flexref.errors import in_gib


def print_tensors(report: Mapping[str, Any]) -> None:
    """Print what the model is, a table of its tensors, and the sums."""
    for line in _lines(report):
        click.echo(line)


def _lines(report: Mapping[str, Any]) -> list[str]:
    """The report as text: what the model is, a table of its tensors, and the sums."""
    model = report["model"]
    groups = f" in groups of {report['group_size']}" if report["group_size"] else ""
    tokenizer = in_gib(report["tokenizer_bytes"]) if report["tokenizer_bytes"] else "none, prompts are token ids"
    chat = report["chat_template_bytes"]
    template = "a chat template that cannot be read" if chat is None else f"a chat template of {chat} bytes"
    if report["tokenizer_bytes"]:
        tokenizer += f", with {template}" if chat != 0 else ", without a chat template"
    name = printable(model["name"])
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
