"""Options of the commands that plan, and what they ask of the planner; they compute nothing."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from flexref.planner.candidates import Candidate
    from flexref.planner.plan_request import Wanted

Command = TypeVar("Command", bound=Callable[..., Any])

WEIGHTS_CHOICE = click.Choice(["none", "int4", "int8", "any"])
CACHE_CHOICE = click.Choice(["none", "int4", "any"])
WEIGHTS_HELP = "How weights are stored; any: a file's as they are, a size's as none or int4, whichever is faster."
PLACE_CHOICE = click.Choice(["device", "host", "any"])


class Amount(click.FloatRange):
    """A finite number of at least 0; nan and infinity, which a range lets through, are no amounts."""

    def __init__(self, *, above: bool = False) -> None:
        """With `above`, 0 is no amount either."""
        super().__init__(min=0, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error if it is none."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


OPTIONS = (
    click.option("--prompt-len", default=512, show_default=True, type=click.IntRange(min=1), help="In tokens."),
    click.option("--gen-len", default=32, show_default=True, type=click.IntRange(min=1), help="New tokens of a row."),
    click.option("--rows", type=click.IntRange(min=1), help="Rows of the job; default: as many as fill a block."),
    click.option("--quantize-weights", type=WEIGHTS_CHOICE, default="any", show_default=True, help=WEIGHTS_HELP),
    click.option("--quantize-cache", type=CACHE_CHOICE, default="any", show_default=True, help="Of the KV cache."),
    click.option(
        "--attention-on", type=PLACE_CHOICE, default="any", show_default=True, help="To a cache off the device."
    ),
    click.option("--rows-per-group", type=click.IntRange(min=1), help="Rows that are computed together."),
    click.option("--groups", type=click.IntRange(min=1), help="Groups that share a fetched layer."),
    click.option(
        "--overlap/--no-overlap",
        default=True,
        show_default=True,
        help="Move beside computing, or one thing after another.",
    ),
    click.option(
        "--max-latency-s", type=Amount(above=True), help="The most that a block may take, prefill and decode."
    ),
    click.option("--max-disk-writes-gib", type=Amount(), help="The most that a job (or a block) may write to disk."),
    click.option("--device-mem-gib", type=Amount(), help="In place of the machine's."),
    click.option("--host-mem-gib", type=Amount(), help="In place of the machine's."),
    click.option("--disk-gib", type=Amount(), help="In place of the machine's."),
)

ALL_SCHEMES, ALL_PLACES = ("none", "int4"), ("device", "host")


def planner_options(command: Command) -> Command:
    """The options, on a command that takes them as keyword arguments for `wanted_of`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def wanted_of(options: dict[str, Any]) -> "Wanted":
    """What the options ask of the planner. Without a wish for its weights, a file keeps its own scheme."""
    from flexref.planner.plan_request import Wanted

    def some(name: str) -> tuple[str, ...] | None:
        return None if options[name] == "any" else (options[name],)

    same = ("rows", "rows_per_group", "groups", "overlap", "max_latency_s", "max_disk_writes_gib")
    capacities = ("device_mem_gib", "host_mem_gib", "disk_gib")
    return Wanted(
        options["prompt_len"],
        options["gen_len"],
        weights_schemes=some("quantize_weights"),
        cache_schemes=some("quantize_cache") or ALL_SCHEMES,
        attention_on=some("attention_on") or ALL_PLACES,
        **{name: options[name] for name in (*same, *capacities)},
    )


def in_short(candidate: "Candidate") -> str:
    """A candidate's policy in a line: schemes, rows, and what of weights, cache and activations is off the device."""
    policy = candidate.policy
    assert policy is not None
    parts = [candidate.label, f"{policy.rows_per_group} x {policy.groups_per_block} rows"]
    for kind in ("weights", "cache", "activations"):
        shares = getattr(policy, kind)
        off = [f"{getattr(shares, tier):.0%} on {tier}" for tier in ("host", "disk") if getattr(shares, tier) >= 0.005]
        if off:
            parts.append(f"{kind} {' and '.join(off)}")
    return "; ".join(parts)
