"""Figures of what became of mutants, as text and as JSON; it tries none."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from mutate_operators_run.mutating import EQUIVALENT, KILLED, SURVIVED, Outcome


def tell(outcome: Outcome, number: int, total: int) -> None:
    """A line on one mutant: of those that live to stdout, of others to stderr."""
    how = f"by {outcome.clause}, {outcome.examples} examples" if outcome.outcome == KILLED else outcome.said
    line = f"{number}/{total} {outcome.outcome} {how} ({outcome.seconds:.1f} s) {outcome.place} {outcome.key}"
    click.echo(" ".join(line.split()), err=outcome.outcome == KILLED)


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts; `killed_share` is of those that are not equivalent, `hung` are of the killed."""
    found = Counter(outcome.outcome for outcome in outcomes)
    killed = [outcome for outcome in outcomes if outcome.outcome == KILLED]
    examples = Counter(outcome.examples for outcome in killed)
    different = found[KILLED] + found[SURVIVED]
    return {
        "mutants": len(outcomes),
        **{outcome: found[outcome] for outcome in (KILLED, SURVIVED, EQUIVALENT)},
        "hung": sum(outcome.said.startswith("hung: ") for outcome in killed),
        "killed_share": round(found[KILLED] / different, 4) if different else None,
        "killed_by_clause": dict(Counter(outcome.clause for outcome in killed).most_common()),
        "killed_by_examples": {str(count): examples[count] for count in sorted(examples)},
    }


def show(outcomes: Sequence[Outcome], seconds: float) -> None:
    """The table by file, and the figures."""
    files = Counter((outcome.place.partition(":")[0], outcome.outcome) for outcome in outcomes)
    for file in sorted({file for file, _ in files}):
        told = (f"{files[file, outcome]:4d} {outcome}" for outcome in (KILLED, SURVIVED, EQUIVALENT))
        click.echo(f"{file:32s} {'  '.join(told)}")
    all_in_all = figures(outcomes)
    for what in ("clause", "examples"):
        said = ", ".join(f"{name} {count}" for name, count in all_in_all[f"killed_by_{what}"].items())
        click.echo(f"killed by {what}: {said}")
    click.echo(
        f"{all_in_all['mutants']} mutants in {seconds:.0f} s: {all_in_all[KILLED]} killed ({all_in_all['hung']} hung), "
        f"{all_in_all[SURVIVED]} survived, {all_in_all[EQUIVALENT]} are equivalent; "
        f"killed of those that are not: {all_in_all['killed_share']}"
    )
