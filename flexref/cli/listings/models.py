"""`flexref models`: models that are known by name, and how large each is; it parses, calls one function and prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.options import option

if TYPE_CHECKING:
    from flexref.architecture.spec import ModelSpec

WEIGHTS = ("none", "int8", "int4")
CACHES = ("none", "int4")
"""Schemes whose bytes are told, each beside float16."""

DTYPE = "float16"


@click.command("models")
@option("--json")
def command(as_json: bool) -> None:
    """List the models that are known by name: the built-in one, and all published sizes of OPT.

    `demo` is a weight file that ships. The names of sizes are for `flexref plan`, `flexref compare-machines` and
    `flexref bench`, which need no weights. Bytes are those of a file's tensors and of one row's cache per token, in
    groups of 64 where they are quantized.
    """
    from flexref.architecture.published import SIZES
    from flexref.storage.names import DEMO, resolve
    from flexref.storage.weightfile import read_layout

    found = [_row(DEMO, "built in", read_layout(resolve(DEMO)).spec)]
    found += [_row(name, "size", spec) for name, spec in SIZES.items()]
    if as_json:
        click.echo(json.dumps({"models": found}))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.models_report import print_models

    print_models(table_console(), found)


def _row(name: str, kind: str, spec: "ModelSpec") -> dict[str, Any]:
    from flexref.architecture.stages import parameters
    from flexref.backend.records import RecordLayout
    from flexref.storage.random_weights import random_file

    def cache_bytes(scheme: str) -> int:
        return spec.layers * RecordLayout(spec.heads, spec.head_width, DTYPE, scheme).record_bytes

    return {
        "name": name,
        "kind": kind,
        "parameters": parameters(spec),
        "layers": spec.layers,
        "width": spec.width,
        "heads": spec.heads,
        "vocabulary": spec.vocabulary,
        "positions": spec.positions,
        "weights_bytes": {_called(scheme): random_file(spec, scheme=scheme, dtype=DTYPE).nbytes for scheme in WEIGHTS},
        "cache_bytes_per_token": {_called(scheme): cache_bytes(scheme) for scheme in CACHES},
    }


def _called(scheme: str) -> str:
    return DTYPE if scheme == "none" else scheme
