"""What is timed: rows of a file of lengths, their sums to the number, and random prompts that are as long."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.flops import decode_flops, prefill_flops
from flexref.architecture.published import size_named
from flexref.bench import workload
from flexref.bench.floor import whole_floors
from flexref.bench.rates import Rates
from flexref.bench.suites import Arguments
from flexref.bench.workload import Workload, random_prompts, workload_of
from flexref.block.counted_rows import CountedRows
from flexref.block.rows import RowLengths
from flexref.engine.results import Stats
from flexref.errors import PolicyError, PromptError
from flexref.policy import Policy
from flexref.storage.random_weights import random_file

ROWS = st.lists(st.builds(RowLengths, st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=8)


@given(ROWS, st.integers(1, 5))
def test_sums_are_those_of_every_row_and_pass(rows: list[RowLengths], places: int) -> None:
    spec = size_named("tiny")
    assert spec is not None
    work = Workload(CountedRows.of(rows))
    contexts = [range(row.prompt_tokens + 1, row.prompt_tokens + row.new_tokens) for row in rows]
    assert work.flops(spec) == (
        sum(prefill_flops(spec, row.prompt_tokens) for row in rows),
        sum(decode_flops(spec, context) for some in contexts for context in some),
    )
    assert work.past_tokens() == sum(context - 1 for some in contexts for context in some)
    new = [row.new_tokens for row in rows]
    assert (work.prompt_tokens, work.generated_tokens) == (sum(row.prompt_tokens for row in rows), sum(new))
    assert work.least_passes(places) == max(*new, -(-sum(new) // places))
    assert work.row == (rows[0] if len(set(rows)) == 1 else None)
    assert (work.lengths_json() is None) == (work.row is not None)


@given(ROWS, st.integers(0, 3))
def test_prompts_are_as_long_as_the_rows_and_say_how_far_they_go(rows: list[RowLengths], seed: int) -> None:
    work = Workload(CountedRows.of(rows))
    prompts = random_prompts(work, 50, seed)
    assert [len(prompt.token_ids or ()) for prompt in prompts] == [row.prompt_tokens for row in rows]
    if work.row is None:
        assert [prompt.settings for prompt in prompts] == [{"max_new_tokens": row.new_tokens} for row in rows]
    else:
        alike = np.random.default_rng(seed).integers(0, 50, (len(rows), rows[0].prompt_tokens))
        assert [prompt.token_ids for prompt in prompts] == [tuple(row) for row in alike.tolist()]
        assert {prompt.settings for prompt in prompts} == {None}
    assert random_prompts(work, 50, seed) == prompts


def test_a_file_of_lengths_takes_the_place_of_equal_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.jsonl"
    path.write_text('{"prompt_tokens": 3, "new_tokens": 2, "rows": 4}\n{"prompt_tokens": 1, "new_tokens": 5}\n')
    asked = Arguments.from_mapping({"model": "tiny", "lengths": str(path)}, "the test")
    assert (asked.prompt_len, asked.gen_len, asked.rows) == (None, None, None)
    assert Arguments.from_mapping(asked.to_json(), "a report") == asked
    assert list(workload_of(asked).rows) == [RowLengths(3, 2)] * 4 + [RowLengths(1, 5)]
    for name in ("prompt_len", "gen_len", "rows"):
        with pytest.raises(PolicyError, match=f"^the test: {name} and lengths exclude each other"):
            Arguments.from_mapping({"model": "tiny", "lengths": str(path), name: 3}, "the test")
        with pytest.raises(PolicyError, match=f"^the test: {name} must be a whole number of at least 1, found None"):
            Arguments.from_mapping({"model": "tiny", name: None}, "the test")
    monkeypatch.setattr(workload, "MOST_ROWS", 4)
    with pytest.raises(PromptError, match=r"job\.jsonl: 5 rows: a benchmark has at most 4"):
        workload_of(asked)


def test_the_floor_of_rows_that_differ_is_one_of_the_whole_job() -> None:
    file, work = random_file(tiny()), Workload(CountedRows.of([RowLengths(3, 3), RowLengths(1, 1)]))
    stats = Stats("numpy", Policy(rows_per_group=1), blocks=1)
    stats.link_bytes = {"host->device": {"weights": 70, "cache": 30}, "device->host": {"cache": 20}, "disk->host": {}}
    (floor,) = whole_floors(file, work, stats, Rates(10.0, 5.0, 1e12, 1000.0), "float32")
    assert floor.terms_s["host->device"] == 100 / 10
    assert floor.terms_s["device->host"] == 20 / 5
    assert floor.terms_s["products"] == sum(work.flops(file.spec)) / 1000


def tiny() -> Any:
    spec = size_named("tiny")
    assert spec is not None
    return spec
