"""Occupancy of blocks: means over passes, kept in a few figures however many passes there are."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.engine.occupancy import STRETCHES_MOST, Occupancy
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy


@given(st.integers(0, 5 * STRETCHES_MOST), st.integers(1, 7))
def test_every_figure_is_the_mean_of_its_passes(passes: int, places: int) -> None:
    shares, occupancy = [(number * number) % (places + 1) / places for number in range(passes)], Occupancy()
    for share in shares:
        occupancy.add(share)
    assert occupancy.passes == passes
    assert occupancy.mean == pytest.approx(sum(shares) / passes if passes else 0.0)
    assert len(occupancy.by_stretch) <= STRETCHES_MOST
    each = occupancy.stretch_passes
    stretches = [shares[first : first + each] for first in range(0, passes, each)]
    assert occupancy.by_stretch == pytest.approx([sum(some) / len(some) for some in stretches])
    assert json.loads(json.dumps(asdict(occupancy)))["passes"] == passes


def test_a_job_says_how_full_its_block_was_in_every_pass(model_file: object) -> None:
    spec = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
    policy = Policy(rows_per_group=2, groups_per_block=2)
    with load(model_file(spec), policy=policy, scratch_bytes=1 << 16) as engine:  # type: ignore[operator]
        stats = engine.generate([[1, 2]] * 6, Request(3, ignore_eos=True)).stats
    assert stats.occupancy.by_stretch == [1.0] * 3 + [0.5] * 3
    assert (stats.occupancy.passes, stats.occupancy.mean) == (6, 0.75)
    assert (stats.rows_admitted, stats.rows_retired, stats.blocks) == (6, 6, 1)
    assert (stats.prompt_tokens, stats.generated_tokens) == (12, 18)
    assert stats.read_tokens_per_s == pytest.approx(stats.tokens_per_s * 12 / 18)
    assert stats.to_json()["occupancy"]["mean"] == 0.75
