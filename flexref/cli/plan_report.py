"""A plan as text and tables for people; it computes nothing."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flexref.cli.planner_options import in_short
from flexref.errors import in_gib
from flexref.planner.machine import TIERS

if TYPE_CHECKING:
    from flexref.engine.planning import Plan
    from flexref.planner.machine import Machine


def print_plan(console: Console, found: "Plan", machine: "Machine", report: Mapping[str, Any]) -> None:
    """Print the best policy, what it will take, what binds it, what more would bring, and what it was chosen from."""
    best, wanted = found.best, found.wanted
    prediction = best.prediction
    assert prediction is not None
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"{found.model} on {found.machine}: prompts of {wanted.prompt_tokens} tokens, {wanted.new_tokens} new tokens")
    say(f"best: {in_short(best)}")
    what = f"{prediction.rows} rows in {prediction.blocks} block(s)"
    say(
        f"predicted: {prediction.tokens_per_s:.4g} tokens/s over {what}: prefill {prediction.prefill_s:.4g} s, "
        f"decode {prediction.decode_s:.4g} s; loading the weights takes {prediction.load_s:.4g} s before"
    )
    say(f"what binds: {', '.join(found.binding) or 'nothing'}")
    busy = ", ".join(f"{lane} {share:.0%}" for lane, share in prediction.lane_busy.items())
    say(f"busy share of each lane: {busy}")
    console.print(_memory(found, machine))
    console.print(_one_more(found))
    console.print(_candidates(found))
    for line in _costs(report):
        say(line)
    searched = found.searched
    say(
        f"searched {searched['solved'] + searched['pruned']} pairs of rows per group and groups: "
        f"{searched['solved']} solved, the others ruled out by their bounds; {report['plan_s']:.1f} s"
    )
    for warning in machine.warnings:
        say(f"assumed, or unstable: {warning}")


def _memory(found: "Plan", machine: "Machine") -> Table:
    """What each tier holds at most, and what it has."""
    assert found.best.prediction is not None
    table = Table(title="Memory", title_justify="left")
    for heading in ("", *TIERS):
        table.add_column(heading, justify="left" if not heading else "right")
    peaks = found.best.prediction.peak_bytes
    table.add_row("peak", *(in_gib(peaks[tier]) for tier in TIERS))
    table.add_row("there is", *(in_gib(machine.capacity_bytes[tier]) for tier in TIERS))
    return table


def _one_more(found: "Plan") -> Table:
    table = Table(title="Tokens/s that one more would bring, with the same rows and groups", title_justify="left")
    for heading in ("one more", "by the duals", "solved again"):
        table.add_column(heading, justify="left" if heading == "one more" else "right")
    for entry in found.one_more:
        table.add_row(entry.what, f"{entry.from_duals:+.4f}", f"{entry.solved_again:+.4f}")
    return table


def _candidates(found: "Plan") -> Table:
    """All ways of storing things; what was only estimated says so."""
    table = Table(title="Candidates", title_justify="left")
    for heading in ("", "tokens/s", "prefill s", "decode s", "rows", "or why not"):
        table.add_column(heading, justify="right" if heading in ("tokens/s", "prefill s", "decode s") else "left")
    for candidate in found.candidates:
        prediction, policy = candidate.prediction, candidate.policy
        if prediction is None or policy is None:
            table.add_row(candidate.label, "", "", "", "", candidate.problem or "")
            continue
        about = "" if prediction.simulated else "about "
        rows = f"{policy.rows_per_group} x {policy.groups_per_block}"
        seconds = (f"{prediction.prefill_s:.4g}", f"{prediction.decode_s:.4g}")
        table.add_row(candidate.label, f"{about}{prediction.tokens_per_s:.4g}", *seconds, rows, "")
    return table


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if "cost_per_million_tokens" in report:
        lines.append(f"a million generated tokens cost {report['cost_per_million_tokens']:.2f}")
    written = report["disk_written_bytes_per_million_tokens"]
    if written:
        lines.append(f"a million generated tokens write {in_gib(int(written))} to disk")
    if "disk_life_days" in report:
        days = report["disk_life_days"]
        lines.append("the drive is not written to" if days is None else f"at that rate the drive lasts {days:.0f} days")
    return lines
