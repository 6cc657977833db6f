"""A job's account as tables for people: what lay on which tier, what crossed which link; it computes nothing."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flexref.errors import in_gib
from flexref.units import TIERS

if TYPE_CHECKING:
    from flexref.engine.results import Stats
    from flexref.simulator.prediction_error import PredictionError


def print_stats(console: Console, stats: "Stats") -> None:
    """Print placement, traffic and speed of one job."""
    print_tables(console, stats)
    policy = stats.policy
    console.print(
        f"{stats.generated_tokens} tokens for {stats.rows} row(s) in {stats.blocks} block(s) of up to "
        f"{policy.groups_per_block} x {policy.rows_per_group} rows: {stats.tokens_per_s:.2f} tokens/s "
        f"(load {stats.load_s:.2f} s, memory {stats.allocate_s:.2f} s, prefill {stats.prefill_s:.2f} s, "
        f"decode {stats.decode_s:.2f} s)"
    )
    if not stats.direct_disk_reads:
        console.print("disk reads went through the page cache: the file system refused direct reads")
    if stats.lane_busy:
        busy = ", ".join(f"{lane} {share:.0%}" for lane, share in stats.lane_busy.items())
        console.print(f"busy share of each lane: {busy}")


def print_tables(console: Console, stats: "Stats") -> None:
    """Print placement and traffic of one job."""
    console.print(_tiers(stats))
    console.print(_links(stats))


def print_prediction_error(console: Console, prediction_error: "PredictionError | None") -> None:
    """Print which phases took another time than was predicted, and in which term; nothing, where none did."""
    for miss in () if prediction_error is None else prediction_error.misses():
        console.print(str(miss), highlight=False)


def _tiers(stats: "Stats") -> Table:
    """What lay where: bytes, real share and planned share of each kind, and each tier's peak against its budget."""
    table = Table(title=f"What lay on which tier (backend {stats.backend})", title_justify="left")
    table.add_column("")
    for tier in TIERS:
        table.add_column(tier, justify="right")
    for kind, placement in stats.placement.items():
        cells = []
        for tier in TIERS:
            real, planned = placement["real"][tier], placement["planned"][tier]
            note = f" ({real:.0%}, planned {planned:.0%})" if real or planned else ""
            cells.append(in_gib(stats.tier_bytes[kind][tier]) + note)
        table.add_row({"cache": "KV cache"}.get(kind, kind), *cells)
    table.add_row("peak of all", *(in_gib(stats.peak_bytes[tier]) for tier in TIERS))
    budgets = (stats.budget_bytes[tier] for tier in TIERS)
    table.add_row("budget", *("none" if budget is None else in_gib(budget) for budget in budgets))
    return table


def _links(stats: "Stats") -> Table:
    """Bytes that crossed each link, by kind, and the rate while copies ran."""
    table = Table(title="What crossed which link", title_justify="left")
    for heading in ("link", "weights", "KV cache", "activations", "rate"):
        table.add_column(heading, justify="left" if heading == "link" else "right")
    for link, kinds in stats.link_bytes.items():
        seconds, total = sum(stats.link_s[link].values()), sum(kinds.values())
        rate = f"{in_gib(int(total / seconds))}/s" if seconds and total else ""
        table.add_row(link, *(in_gib(kinds.get(kind, 0)) for kind in ("weights", "cache", "activations")), rate)
    return table
