"""A plan as text and tables for people; it computes nothing."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flexref.cli.show.console import FilledTable
from flexref.cli.show.lengths import request_lengths
from flexref.cli.show.report import KIND_NAMES
from flexref.errors import how_many, in_gib
from flexref.units import KINDS, TIERS

if TYPE_CHECKING:
    from flexref.machine.machine import Machine
    from flexref.planner.candidates import Candidate
    from flexref.planner.plan import Plan


SHOWN_GAIN = 5e-5
"""Tokens per second below which a gain is shown as 0."""

DAYS_PER_YEAR = 365.25


def print_plan(console: Console, found: "Plan", machine: "Machine", report: Mapping[str, Any]) -> None:
    """Print the best policy, what it will take, what binds it, what more would bring, and what it was chosen from."""
    best, wanted = found.best, found.wanted
    prediction = best.prediction
    assert prediction is not None
    say = partial(console.print, highlight=False)
    say(f"{found.model} on {found.machine}: {request_lengths(wanted)}")
    say(f"best: {in_short(best)}")
    say(
        f"predicted: {prediction.tokens_per_s:.4g} tokens/s for {how_many(prediction.rows, 'row')} in "
        f"{how_many(prediction.blocks, 'block')} of {prediction.passes} pass{'' if prediction.passes == 1 else 'es'}, "
        f"with {prediction.occupancy:.0%} of its places taken: "
        f"prefill {prediction.prefill_s:.4g} s, decode {prediction.decode_s:.4g} s; "
        f"loading the weights takes {prediction.load_s:.4g} s, in part beside the first pass"
    )
    say(f"what binds: {', '.join(found.binding) or 'nothing'}")
    busy = ", ".join(f"{lane} {share:.0%}" for lane, share in prediction.lane_busy.items())
    say(f"busy share of each lane: {busy}")
    console.print(_places(found, machine))
    if any(_gain(gain) != "0" for entry in found.one_more for gain in (entry.from_duals, entry.solved_again)):
        console.print(_one_more(found))
    else:
        say(f"no more tokens/s from one more of: {', '.join(entry.what for entry in found.one_more)}")
    console.print(_candidates(found))
    for line in _costs(report):
        say(line)
    searched = found.searched
    say(
        f"searched {searched['solved'] + searched['pruned']} pairs of rows per group and groups: {searched['solved']} "
        f"solved, {searched['pruned']} ruled out by their bounds; {report['plan_s']:.1f} s"
    )
    for warning in machine.warnings:
        say(f"assumed, or unstable: {warning}")


def _places(found: "Plan", machine: "Machine") -> FilledTable:
    """The share of each kind of data on each tier, the most that a tier holds at once, and what it has."""
    policy, prediction = found.best.policy, found.best.prediction
    assert policy is not None
    assert prediction is not None
    rows = [
        (
            KIND_NAMES.get(kind, kind),
            *(f"{share:.1%}" if (share := getattr(getattr(policy, kind), tier)) else "" for tier in TIERS),
        )
        for kind in KINDS
    ]
    peaks = (prediction.peak_bytes[tier] for tier in TIERS)
    rows.append(("peak", *(in_gib(peak) if peak else "" for peak in peaks)))
    rows.append(("there is", *(in_gib(machine.capacity_bytes[tier]) for tier in TIERS)))
    return FilledTable("What lies where", ("", *TIERS), rows)


def _one_more(found: "Plan") -> FilledTable:
    gains = ((entry.what, _gain(entry.from_duals), _gain(entry.solved_again)) for entry in found.one_more)
    rows = [row for row in gains if row[1:] != ("0", "0")]
    headings = ("one more", "by the duals", "solved again")
    caption = "with the same rows and groups; one more of what is not listed would bring none"
    return FilledTable("Tokens/s that one more would bring", headings, rows, caption=caption)


def _gain(tokens_per_s: float) -> str:
    """A gain to three digits; what is none, up to the linear program's own rounding, as 0."""
    return f"{tokens_per_s:+.3g}" if abs(tokens_per_s) >= SHOWN_GAIN else "0"


def _candidates(found: "Plan") -> FilledTable:
    """All ways of storing things, the best one marked; what was only estimated says so, what does not fit says why."""
    rows: list[tuple[str, ...]] = []
    for candidate in found.candidates:
        prediction, policy = candidate.prediction, candidate.policy
        if prediction is None or policy is None:
            rows.append((candidate.label, "", "", "", "", candidate.problem or ""))
            continue
        about = "" if prediction.simulated else "about "
        seconds = (f"{prediction.prefill_s:.4g}", f"{prediction.decode_s:.4g}")
        size = f"{policy.rows_per_group} x {policy.groups_per_block}"
        rows.append((candidate.label, f"{about}{prediction.tokens_per_s:.4g}", *seconds, size, ""))
    best = [number for number, candidate in enumerate(found.candidates) if candidate is found.best]
    headings = ("", "tokens/s", "prefill s", "decode s", "rows x groups", "or why not")
    return FilledTable("Candidates", headings, rows, left=("rows x groups", "or why not"), bold=best)


def _costs(report: Mapping[str, Any]) -> list[str]:
    """Lines on money and the drive, as far as prices and ratings were given."""
    lines = []
    if "cost_per_million_tokens" in report:
        cost = report["cost_per_million_tokens"]
        lines.append(f"a million generated tokens cost {cost:.4g} (in the currency of the price)")
    written = report["disk_written_bytes_per_million_tokens"]
    if written:
        lines.append(f"a million generated tokens write {in_gib(int(written))} to disk")
    if "disk_life_days" in report:
        days = report["disk_life_days"]
        lines.append("the drive is not written to" if days is None else f"at that rate the drive lasts {_life(days)}")
    return lines


def _life(days: float) -> str:
    return f"{days:.3g} days" if days < DAYS_PER_YEAR else f"{days / DAYS_PER_YEAR:.3g} years ({days:.0f} days)"


def in_short(candidate: "Candidate") -> str:
    """A candidate's policy in a line: schemes, rows, and what of weights, cache and activations is off the device."""
    policy = candidate.policy
    assert policy is not None
    parts = [candidate.label, f"{policy.rows_per_group} x {policy.groups_per_block} rows"]
    if not policy.row_invariant:
        parts.append("rows without bits of their own")
    for kind in KINDS:
        shares = getattr(policy, kind)
        off = [f"{getattr(shares, tier):.0%} on {tier}" for tier in ("host", "disk") if getattr(shares, tier) >= 0.005]
        if off:
            parts.append(f"{kind} {' and '.join(off)}")
    return "; ".join(parts)
