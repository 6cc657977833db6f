"""`flexref batch --dry-run`: every line checked, and what the job would take; parses nothing, runs no job."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.errors import duration, how_many, in_gib

if TYPE_CHECKING:
    from flexref.batch_job.planned import PlannedJob
    from flexref.batch_job.prepared import PreparedFile
    from flexref.batch_job.validation import Validation


def dry_run(prepared: "PreparedFile", max_disk_writes_gib: float | None, given: dict[str, Any]) -> None:
    """Print what the input holds and what the job will take, as text or as one JSON object. Nothing is written."""
    from flexref.batch_job.planned import planned
    from flexref.batch_job.validation import validate
    from flexref.batch_job.watching.disk_bound import predicted_pause
    from flexref.cli.show.progress import progress

    reader, positions = prepared.reader, prepared.prepared.file.spec.positions
    with progress("validating the input"):
        found = validate(prepared.scan, reader, positions, iter(prepared.expected))
    with progress("planning"):
        plan = planned(prepared.prepared, found, given["price_per_hour"])
    pause = None
    if plan is not None and max_disk_writes_gib is not None:
        pause = predicted_pause(max_disk_writes_gib, plan.disk_write_bytes)
    if given["as_json"]:
        planned_json = None if plan is None else plan.to_json()
        click.echo(json.dumps({"input": found.to_json(), "plan": planned_json, "pause": pause}))
        return
    for line in (*_input_lines(found), *_plan_lines(plan), *([pause] if pause else ())):
        click.echo(line)


def _input_lines(found: "Validation") -> list[str]:
    """What the input holds."""
    about = "" if found.counted else "about "
    said = [
        f"{how_many(found.lines, 'line')} to answer, {found.failed} of them cannot be served",
        f"{how_many(found.rows, 'row')}: {about}{found.prompt_tokens} tokens of prompts, at most {found.new_tokens} "
        "new ones",
    ]
    for kind in found.errors:
        numbers = ", ".join(map(str, kind.lines)) + (", ..." if kind.count > len(kind.lines) else "")
        said.append(f"  {kind.code}, {how_many(kind.count, 'line')} ({numbers}): {kind.message}")
    return said


def _plan_lines(plan: "PlannedJob | None") -> list[str]:
    """What the job will take."""
    if plan is None:
        return ["nothing can be served: there is nothing to plan"]
    prediction = plan.prediction
    said = [
        f"policy: {plan.policy.in_short}",
        f"at most {duration(plan.seconds)} on {plan.machine}: {prediction.tokens_per_s:.4g} tokens/s, with "
        f"{prediction.occupancy:.0%} of the places taken; loading the weights takes {prediction.load_s:.3g} s of it",
        f"written to disk: {in_gib(plan.spilled_bytes)} of cache and activations, about {in_gib(plan.answer_bytes)} of "
        "answers",
    ]
    if plan.cost_usd is not None:
        said.append(f"cost: at most {plan.cost_usd:.4g}")
    return said
