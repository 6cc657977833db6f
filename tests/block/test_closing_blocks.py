"""A pass for which nothing was loaded early does not come: rows that arrive after that are for another block."""

from typing import Any

from flexref.architecture.spec import ModelSpec
from flexref.engine import generation
from flexref.engine.generation import GenerationJob
from flexref.engine.outcomes import results
from flexref.engine.request import Request, RowRequest
from flexref.loading import load
from flexref.policy import Policy, Shares

SPEC = ModelSpec("small", 50, 48, 16, 16, 1, 2, 32)
"""Of so few stages that a stream is asked for more after the next pass's weights were, or were not, loaded."""


def test_rows_that_arrive_when_a_block_ends_are_served_by_another_one(model_file: Any, monkeypatch: Any) -> None:
    policy = Policy(weights=Shares(0, 1, 0), rows_per_group=1, groups_per_block=2)
    requests = [RowRequest([3 + row, 7], Request(1, ignore_eos=True)) for row in range(7)]
    with load(model_file(SPEC), policy=policy) as engine:
        expected = [
            output.token_ids
            for output in engine.generate([each.prompt for each in requests], requests[0].request).outputs
        ]
        # A window of the block's own rows is empty as soon as they have entered.
        monkeypatch.setattr(generation, "WINDOWS", 1)
        job = GenerationJob(engine.session, iter(requests), policy)
        found = {result.number: result.output.token_ids for result in results(job) if result.output is not None}
    assert [found[number] for number in range(7)] == expected
    assert job.stats.blocks > 1
