"""Which shard a process works on: as it is told, or as Slurm and Kubernetes number their tasks; it knows no input.

Shards are numbered from 0, as both of them do. A task of a Slurm array or of an Indexed Job is never given the whole
input in silence, nor a shard: `ChosenShard.why` is for the user to read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexref.batch_job.shard import CHUNK_LINES, WHOLE, Shard
from flexref.errors import BatchError

AUTO = "auto"

SLURM, KUBERNETES = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"
COMPLETIONS = "JOB_COMPLETIONS"
"""Kubernetes does not tell a pod how many there are: the Job's file says it in this variable (tools/deploy)."""

DIGITS = 4
"""Of a shard's number in the name of its output, so that a folder lists a thousand and more in order."""

WHOLE_TEXT = "0/1"


@dataclass(frozen=True, slots=True)
class ChosenShard:
    """A shard, and in one line why it is this one: None for the whole input where nobody asked for anything.

    `numbered`: variables chose it, so that all tasks run the same command line and its outputs must be named apart.
    """

    shard: Shard
    why: str | None = None
    numbered: bool = False

    def path(self, path: Path) -> Path:
        """Where this shard writes what the command line calls `path`: `out.0003-of-0016.jsonl` for `out.jsonl`."""
        if not self.numbered:
            return path
        number = f"{self.shard.index:0{DIGITS}d}-of-{self.shard.count:0{DIGITS}d}"
        return path.with_name(f"{path.stem}.{number}{path.suffix}")


def choose_shard(asked: str | None, environment: Mapping[str, str], chunk_lines: int = CHUNK_LINES) -> ChosenShard:
    """The shard that is `asked` for: `3/16`, `auto`, `auto/16`, or None for what the variables say, if they are there.

    `auto/16` takes the task's number as it stands, so that single tasks can be run again; `auto` (and None) take how
    many there are from the variables, too. Raises `BatchError` where that is not known or contradicts itself.
    """
    found = [name for name in (SLURM, KUBERNETES) if environment.get(name)]
    if asked is None and not found:
        return ChosenShard(WHOLE if chunk_lines == CHUNK_LINES else Shard(chunk_lines=chunk_lines))
    index, count = _parts(asked or AUTO)
    if index is not None and count is not None:
        shard = Shard(index, count, chunk_lines)
        return ChosenShard(shard, f"{_in_words(shard)}: --shard {index}/{count}")
    if not found:
        raise BatchError(f"--shard {asked}: neither {SLURM} nor {KUBERNETES} is set; give a number, such as 0/16")
    if len(found) > 1:
        raise BatchError(f"both {SLURM} and {KUBERNETES} are set: say with --shard I/N which shard is meant")
    index, count = (_slurm if found == [SLURM] else _kubernetes)(environment, count)
    shard = Shard(index, count, chunk_lines)
    why = f"{found[0]} is {environment[found[0]]}; --shard {WHOLE_TEXT} works on the whole input"
    return ChosenShard(shard, f"{_in_words(shard)}: {why}", numbered=count > 1)


def check_asked(asked: str) -> None:
    """`BatchError` for what names no shard, whatever the variables say."""
    index, count = _parts(asked)
    if index is not None and count is not None:
        Shard(index, count)


def _in_words(shard: Shard) -> str:
    if shard.count == 1:
        return "the whole input"
    return f"shard {shard.index} of {shard.count} (numbered from 0), in chunks of {shard.chunk_lines} lines"


def _parts(asked: str) -> tuple[int | None, int | None]:
    """Number and count as they are asked for; None where the variables say it."""
    match = re.fullmatch(r"(auto|[0-9]{1,9})(?:/([0-9]{1,9}))?", asked)
    if match is None or (match[1] != AUTO and match[2] is None):
        raise BatchError(f"--shard must be I/N, {AUTO} or {AUTO}/N, with I from 0 to N - 1, found {asked!r}")
    count = None if match[2] is None else int(match[2])
    if count == 0:
        raise BatchError(f"--shard {asked}: there must be at least 1 shard")
    return None if match[1] == AUTO else int(match[1]), count


def _slurm(environment: Mapping[str, str], count: int | None) -> tuple[int, int]:
    """Number and count of a task of a Slurm array. Without a count the array's numbers must have no holes."""
    task = _number(environment, SLURM)
    if count is not None:
        last = _number(environment, "SLURM_ARRAY_TASK_MAX") if environment.get("SLURM_ARRAY_TASK_MAX") else task
        if last >= count:
            raise BatchError(
                f"the Slurm array goes to task {last}, of {count} shards: begin at 0 (--array=0-{count - 1})"
            )
        return task, count
    names = ("SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise BatchError(f"{SLURM} is {task}, but {missing[0]} is not set: say how many shards, --shard {AUTO}/N")
    tasks, first, last = (_number(environment, name) for name in names)
    step = (last - first) // (tasks - 1) if tasks > 1 else 1
    if first + step * (tasks - 1) != last or not first <= task <= last or (task - first) % step:
        raise BatchError(
            f"the Slurm array has {tasks} tasks from {first} to {last}, and this one is {task}: number them without "
            f"holes (--array=0-{tasks - 1}), or say how many shards, --shard {AUTO}/N"
        )
    return (task - first) // step, tasks


def _kubernetes(environment: Mapping[str, str], count: int | None) -> tuple[int, int]:
    """Number and count of a pod of an Indexed Job, which numbers them from 0."""
    index = _number(environment, KUBERNETES)
    if count is None and not environment.get(COMPLETIONS):
        raise BatchError(
            f"{KUBERNETES} is {index}, but how many there are is not known: set {COMPLETIONS} to the Job's "
            f"completions, or give --shard {AUTO}/N"
        )
    return index, count if count is not None else _number(environment, COMPLETIONS)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise BatchError(f"the variable {name} must be a number from 0 on, found {text!r}")
    return int(text)
