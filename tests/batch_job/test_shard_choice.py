"""A process works on the shard that it is told, or on that of its task, and says which; never on another in silence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job.shard import WHOLE, Shard
from flexref.batch_job.shard_choice import choose_shard
from flexref.errors import BatchError


def slurm(task: int, first: int, count: int, step: int = 1) -> dict[str, str]:
    """The variables of a task of `--array=FIRST-LAST:STEP`."""
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(first + (count - 1) * step),
    }


def kubernetes(index: int, completions: int) -> dict[str, str]:
    return {"JOB_COMPLETION_INDEX": str(index), "JOB_COMPLETIONS": str(completions)}


def test_nobody_asks_and_there_are_no_variables_so_the_input_is_worked_on_whole_without_a_word() -> None:
    chosen = choose_shard(None, {"HOME": "/"})
    assert chosen.shard == WHOLE
    assert chosen.why is None
    assert chosen.path(Path("out.jsonl")) == Path("out.jsonl")


@given(st.integers(1, 50).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))), st.booleans())
def test_a_shard_that_is_told_is_taken_whatever_the_variables_say(shard: tuple[int, int], set_too: bool) -> None:
    index, count = shard
    chosen = choose_shard(f"{index}/{count}", slurm(3, 0, 7) if set_too else {})
    assert (chosen.shard.index, chosen.shard.count) == shard
    assert f"--shard {index}/{count}" in str(chosen.why)
    assert chosen.path(Path("a/out.jsonl")) == Path("a/out.jsonl")


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 5000))
def test_the_tasks_of_an_array_divide_the_lines_among_them(first: int, count: int, step: int, lines: int) -> None:
    environments = [slurm(first + place * step, first, count, step) for place in range(count)]
    chosen = [choose_shard(None, environment, chunk_lines=7) for environment in environments]
    assert sorted(number for one in chosen for number in one.shard.numbers(lines)) == list(range(1, lines + 1))
    assert len({one.path(Path("out.jsonl")) for one in chosen}) == count
    assert all(one.why and f"SLURM_ARRAY_TASK_ID is {first + n * step}" in one.why for n, one in enumerate(chosen))


@given(st.integers(1, 40), st.integers(0, 5000))
def test_the_pods_of_an_indexed_job_divide_the_lines_among_them(count: int, lines: int) -> None:
    chosen = [choose_shard("auto", kubernetes(index, count), chunk_lines=7) for index in range(count)]
    assert sorted(number for one in chosen for number in one.shard.numbers(lines)) == list(range(1, lines + 1))


def test_the_output_of_a_task_has_its_number_in_its_name() -> None:
    chosen = choose_shard(None, slurm(4, 1, 16))
    assert chosen.shard == Shard(3, 16)
    assert chosen.path(Path("runs/out.jsonl")) == Path("runs/out.0003-of-0016.jsonl")
    assert chosen.path(Path("out")) == Path("out.0003-of-0016")


def test_the_only_task_of_an_array_works_on_the_whole_input_and_says_so() -> None:
    chosen = choose_shard(None, slurm(0, 0, 1))
    assert chosen.shard == WHOLE
    assert "the whole input" in str(chosen.why)
    assert chosen.path(Path("out.jsonl")) == Path("out.jsonl")


def test_single_tasks_of_an_array_run_again_where_the_count_is_given() -> None:
    again = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
    chosen = choose_shard("auto/16", {**again, "SLURM_ARRAY_TASK_MAX": "5"})
    assert chosen.shard == Shard(5, 16)
    assert chosen.path(Path("out.jsonl")) == Path("out.0005-of-0016.jsonl")


@pytest.mark.parametrize(
    ("asked", "environment", "said"),
    [
        ("16/16", {}, "shards are numbered from 0 to 15"),
        ("0/0", {}, "at least 1 shard"),
        ("3", {}, "must be I/N"),
        ("-1/4", {}, "must be I/N"),
        ("1/", {}, "must be I/N"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        (None, {"JOB_COMPLETION_INDEX": "3"}, "set JOB_COMPLETIONS"),
        (None, {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT is not set"),
        (None, {**slurm(7, 0, 3), "SLURM_ARRAY_TASK_MAX": "9"}, "without holes"),
        (None, {**slurm(1, 0, 3), "SLURM_ARRAY_TASK_MAX": "7"}, "without holes"),
        ("auto/16", slurm(1, 1, 16), "goes to task 16, of 16 shards: begin at 0"),
        (None, kubernetes(5, 5), "shards are numbered from 0 to 4"),
        (None, {**slurm(0, 0, 2), **kubernetes(0, 2)}, "both SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX"),
        (None, {**kubernetes(0, 2), "JOB_COMPLETIONS": "two"}, "JOB_COMPLETIONS must be a number"),
    ],
)
def test_what_cannot_be_or_is_not_known_is_refused_in_one_line(
    asked: str | None, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(BatchError) as refused:
        choose_shard(asked, environment)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
