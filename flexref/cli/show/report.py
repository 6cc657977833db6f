"""A job's account as tables for people: what lay on which tier, what crossed which link; it computes nothing."""

from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Console

from flexref.cli.show.console import FilledTable
from flexref.errors import how_many, in_gib
from flexref.units import KINDS, TIERS

if TYPE_CHECKING:
    from flexref.engine.results import Stats
    from flexref.engine.wall import WholeTime
    from flexref.simulator.prediction_error import PredictionError

KIND_NAMES = MappingProxyType({"cache": "KV cache"})
"""What kinds of data are called in tables, where that is not their own name."""

SINCE = MappingProxyType(
    {
        "process": "the process began",
        "command": "the command began",
        "engine": "the engine was opened",
        "job": "the job was asked for",
    }
)
"""With what the whole time of a job begins, in words."""

LEAST_SHOWN_S = 0.0005
"""A shorter part would be shown as nothing."""


def print_stats(console: Console, stats: "Stats") -> None:
    """Print placement, traffic and speed of one job."""
    print_tables(console, stats)
    policy = stats.policy
    size = f"{how_many(stats.blocks, 'block')} of up to {policy.groups_per_block} x {policy.rows_per_group} rows"
    console.print(
        f"{how_many(stats.generated_tokens, 'token')} for {how_many(stats.rows, 'row')} in {size}: "
        f"{stats.tokens_per_s:.2f} tokens/s (load {stats.load_s:.2f} s, memory {stats.allocate_s:.2f} s, "
        f"prefill {stats.prefill_s:.2f} s, decode {stats.decode_s:.2f} s)"
    )
    for line in rows_in_words(stats):
        console.print(line)
    if not stats.direct_disk_reads:
        console.print("disk reads went through the page cache: the file system refused direct reads")
    if not stats.direct_spills:
        console.print("what was spilled went through the page cache: the file system refused direct reads and writes")
    if stats.read_in_vain_bytes:
        console.print(f"{in_gib(stats.read_in_vain_bytes)} were read from disk ahead of passes that did not come")
    if stats.lane_busy:
        busy = ", ".join(f"{lane} {share:.0%}" for lane, share in stats.lane_busy.items())
        console.print(f"busy share of each lane: {busy}")


def print_whole_time(console: Console, timed: "Stats | WholeTime") -> None:
    """Print where all the time of a job, or of a benchmark, went, from its beginning on."""
    shown = {part: seconds for part, seconds in timed.wall_parts_s.items() if seconds >= LEAST_SHOWN_S}
    rows = [
        ("seconds", *(f"{seconds:.3f}" for seconds in shown.values())),
        ("share", *(f"{seconds / timed.wall_s:.0%}" for seconds in shown.values())),
    ]
    title = f"The whole time: {timed.wall_s:.3f} s since {SINCE[timed.wall_begins]}"
    console.print(FilledTable(title, ("", *shown), rows))


def rows_in_words(stats: "Stats") -> Iterator[str]:
    """How full blocks were, where that was not all the time, and what was spared of prompts that begin alike."""
    if stats.occupancy.mean < 1:
        yield (
            f"{stats.occupancy.mean:.0%} of the places were taken on average, {how_many(stats.rows_admitted, 'row')} "
            f"came in, {stats.read_tokens_per_s:.2f} tokens/s of prompts were read"
        )
    yield from prefixes_in_words(stats)


def prefixes_in_words(stats: "Stats") -> Iterator[str]:
    """What was spared of prompts that begin alike, if anything was."""
    if stats.shared_prefix_tokens:
        crossed = f", {in_gib(stats.shared_prefix_link_bytes)} of cache did not cross to the device"
        yield (
            f"shared prefixes: {how_many(stats.prompt_tokens, 'token')} of prompts read, "
            f"{stats.shared_prefix_tokens} spared{crossed if stats.shared_prefix_link_bytes else ''}"
        )


def print_tables(console: Console, stats: "Stats") -> None:
    """Print placement and traffic of one job."""
    console.print(_tiers(stats))
    if any(any(kinds.values()) for kinds in stats.link_bytes.values()):
        console.print(_links(stats))
    else:
        console.print("What crossed which link: nothing")


def print_prediction_error(console: Console, prediction_error: "PredictionError | None") -> None:
    """Print which phases took another time than was predicted, and in which term; nothing, where none did."""
    for miss in () if prediction_error is None else prediction_error.misses():
        console.print(str(miss), highlight=False)


def _tiers(stats: "Stats") -> FilledTable:
    """What lay where: bytes and share of each kind, and each tier's peak against its budget.

    A tier that held nothing has no column; the planned share stands beside a real one that differs.
    """
    used = [tier for tier in TIERS if stats.peak_bytes[tier]]
    rows = []
    for kind, placement in stats.placement.items():
        cells = []
        for tier in used:
            real, planned = (f"{placement[share][tier]:.0%}" for share in ("real", "planned"))
            nbytes = stats.tier_bytes[kind][tier]
            note = real if real == planned else f"{real}, planned {planned}"
            cells.append(f"{in_gib(nbytes)} ({note})" if nbytes or planned != "0%" else "")
        rows.append((KIND_NAMES.get(kind, kind), *cells))
    rows.append(("peak of all", *(in_gib(stats.peak_bytes[tier]) for tier in used)))
    budgets = (stats.budget_bytes[tier] for tier in used)
    rows.append(("budget", *("none" if budget is None else in_gib(budget) for budget in budgets)))
    return FilledTable(f"What lay on which tier (backend {stats.backend})", ("", *used), rows)


def _links(stats: "Stats") -> FilledTable:
    """Bytes that crossed each link that was used, by kind, and the rate while copies ran."""
    rows = []
    for link, kinds in stats.link_bytes.items():
        seconds, total = sum(stats.link_s[link].values()), sum(kinds.values())
        if total:
            rate = f"{in_gib(int(total / seconds))}/s" if seconds else ""
            rows.append((link, *(in_gib(kinds[kind]) if kinds.get(kind) else "" for kind in KINDS), rate))
    headings = ("link", *(KIND_NAMES.get(kind, kind) for kind in KINDS), "rate")
    return FilledTable("What crossed which link", headings, rows)
