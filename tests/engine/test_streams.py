"""Streams of requests of which many cannot be served, without end or without a policy."""

from itertools import count, islice
from typing import Any

from flexref.architecture.spec import ModelSpec
from flexref.block.admission import Admission, Waiting
from flexref.block.group import Group
from flexref.block.rows import Row, SharedPrefix
from flexref.engine.request import Request, RowRequest
from flexref.errors import CapacityError, PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.tiers.cache_plan import GroupRoom
from flexref.units import Tier

SPEC = ModelSpec("small", 50, 2048, 16, 16, 1, 2, 32)


def test_results_of_requests_that_cannot_be_served_come_though_no_other_ever_does(model_file: Any) -> None:
    with load(model_file(SPEC), policy=Policy(rows_per_group=2)) as engine:
        stream = engine.run(RowRequest([]) for _ in count())
        results = list(islice(stream, 100))
        stream.close()  # type: ignore[attr-defined]
        assert [result.number for result in results] == list(range(100))
        assert all(isinstance(result.error, PromptError) for result in results)
        assert len(engine.generate([[5, 6]], Request(2, ignore_eos=True)).outputs[0].token_ids) == 2


def test_of_a_stream_without_a_policy_a_request_that_fits_under_none_fails_alone(model_file: Any) -> None:
    request = Request(2, ignore_eos=True)
    rows = [RowRequest([7] * 1500, request), *(RowRequest([5, number], request) for number in range(6))]

    def settle(session: Any, lengths: Any) -> Policy:
        if any(row.prompt_tokens > 1000 for row in lengths):
            raise CapacityError("device", "every policy", 20, 10, {})
        return Policy(rows_per_group=2)

    with load(model_file(SPEC), policy=Policy()) as engine:
        engine.session.settle = settle
        found = {result.number: result for result in engine.run(iter(rows))}
    assert isinstance(found[0].error, CapacityError)
    assert all(len(result.output.token_ids) == 2 for number, result in found.items() if number and result.output)
    assert [number for number, result in sorted(found.items()) if result.output is not None] == list(range(1, 7))


def test_a_prefix_whose_last_user_is_taken_out_before_it_is_read_is_read_for_the_next_one() -> None:
    tokens = {Tier.DEVICE: 400, Tier.HOST: 0, Tier.DISK: 0}
    rooms = [GroupRoom(2, tokens, tokens, prefix_tokens=64) for _ in range(2)]
    prefix = SharedPrefix(1, (4,) * 128)
    rows = [Row(number, (4,) * 130, 2) for number in range(3)]
    for row in rows:
        row.share(prefix)
    waiting = Waiting(rows, 8)
    admission = Admission(rooms, waiting, 128)
    groups = [Group(number, room, lambda found: list(range(len(found))), None) for number, room in enumerate(rooms)]
    waiting.refill()
    for group in groups:
        admission.renew(group)
    for row in rows[:2]:
        row.finish_reason = "length"  # as a caller does who wants it no more
    for group in groups:
        group.advance()
        admission.renew(group)
    for _ in range(4):
        for group in groups:
            group.accept([0] * len(group.ready), lambda row: None)
            admission.renew(group)
    assert [row.finish_reason for row in rows] == ["length"] * 3
    assert len(rows[2].tokens) == 2
