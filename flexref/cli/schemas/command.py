"""`flexref schema`: JSON Schemas of what commands read and print; it looks one up and prints it."""

import json
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import click

from flexref.json_types.objects import document

SCHEMAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "policy": ("files", "A policy of flexref"),
        "machine": ("files", "A machine of flexref, measured or known by figures"),
        "plan": ("plan_output", "What flexref plan prints with --json and writes with -o"),
        "generate": ("generate_output", "What flexref generate prints with --json"),
        "bench": ("bench_output", "What flexref bench prints with --json, on every line"),
        "conformance": ("conformance_output", "What flexref conformance prints with --json"),
        "batch-log": ("batch_log", "What flexref batch writes with --log-json, on every line"),
    }
)
"""By name: the module here whose function of that name (- is _) gives its type, and the schema's title."""


def schema(name: str) -> dict[str, Any]:
    """The schema of that name."""
    module, title = SCHEMAS[name]
    kind = getattr(import_module(f"flexref.cli.schemas.{module}"), name.replace("-", "_"))()
    return document(f"urn:flexref:schema:{name}:1", title, kind)


@click.command("schema")
@click.argument("name", type=click.Choice(list(SCHEMAS)))
def command(name: str) -> None:
    """Print the JSON Schema (2020-12) of a file that flexref reads, or of what a command prints with --json.

    policy and machine are files. A policy's file may also be a plan, as `flexref plan -o` writes it: then its member
    `policy` counts. generate, plan, bench, conformance and batch-log are outputs; bench and batch-log have an object on
    every line.
    """
    click.echo(json.dumps(schema(name), indent=2))
