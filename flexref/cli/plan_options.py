"""Options of the commands that plan, and what they ask of the planner; it computes nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import Amount
from flexref.cli.options import Command, check_lengths, option, options, together

if TYPE_CHECKING:
    from flexref.planner.plan_request import PlanRequest

WEIGHTS_CHOICE = click.Choice(["none", "int4", "int8", "any"])
CACHE_CHOICE = click.Choice(["none", "int4", "any"])
WEIGHTS_HELP = "How weights are stored; any: a file's as they are, a size's as none or int4, whichever is faster."
PLACE_CHOICE = click.Choice(["device", "host", "any"])
PLACE_HELP = "Where a cache that is not on the device is attended to."
CAPACITY_HELP = "How much there is to plan with, in place of what the machine has."


OPTIONS = (
    option("--prompt-len", default=512, show_default=True, help="Tokens of every prompt."),
    option("--gen-len", default=32, show_default=True, help="New tokens of every row."),
    option("--rows", type=click.IntRange(1, 10**12), help="Rows of the job; default: as many as fill a block."),
    option("--lengths"),
    click.option("--quantize-weights", type=WEIGHTS_CHOICE, default="any", show_default=True, help=WEIGHTS_HELP),
    click.option(
        "--quantize-cache", type=CACHE_CHOICE, default="any", show_default=True, help="How the KV cache is stored."
    ),
    option("--attention-on", type=PLACE_CHOICE, default="any", show_default=True, help=PLACE_HELP),
    options("--rows-per-group", "--groups"),
    option("--overlap", default=True, show_default=True),
    option("--row-invariant", default=True, show_default=True),
    option("--share-prefixes", default=True, show_default=True),
    click.option(
        "--max-latency-s", type=Amount(above=True), help="The most that a block may take, prefill and decode."
    ),
    click.option("--max-disk-writes-gib", type=Amount(), help="The most that a job (or a block) may write to disk."),
    option("--device-mem-gib", type=Amount(), help=CAPACITY_HELP),
    option("--host-mem-gib", type=Amount(), help=CAPACITY_HELP),
    click.option("--disk-gib", type=Amount(), help=CAPACITY_HELP),
)

ALL_SCHEMES, ALL_PLACES = ("none", "int4"), ("device", "host")


def plan_options(command: Command) -> Command:
    """The options, on a command that takes them as keyword arguments for `plan_request_of`."""
    return together(*OPTIONS)(command)


def plan_request_of(given: Mapping[str, Any]) -> "PlanRequest":
    """What the options ask of the planner. If none is named for the weights, a file keeps its own scheme."""
    from flexref.planner.plan_request import PlanRequest

    def some(name: str) -> tuple[str, ...] | None:
        return None if given[name] == "any" else (given[name],)

    fields = ("rows_per_group", "groups", "overlap", "row_invariant", "share_prefixes")
    same = (*fields, "max_latency_s", "max_disk_writes_gib")
    capacities = ("device_mem_gib", "host_mem_gib", "disk_gib")
    return PlanRequest(
        **_job_of(given),
        weights_schemes=some("quantize_weights"),
        cache_schemes=some("quantize_cache") or ALL_SCHEMES,
        attention_on=some("attention_on") or ALL_PLACES,
        **{name: given[name] for name in (*same, *capacities)},
    )


def _job_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The rows: all alike, or as a file of lengths has them; a usage error for both."""
    if given["lengths_file"] is None:
        return {"prompt_tokens": given["prompt_len"], "new_tokens": given["gen_len"], "rows": given["rows"]}
    check_lengths(click.get_current_context())
    from flexref.planner.lengths_file import read_lengths

    return {"lengths": read_lengths(given["lengths_file"])}
