"""Blocks on plans at random, in which copies fail, visits fail or the caller leaves: memory is as it was before."""

import itertools
from pathlib import Path
from typing import Any

import flexref_numpy.lanes as numpy_lanes
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flexref.architecture.spec import ModelSpec
from flexref.block.generate_block import GenerateBlock
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.engine.session import always
from flexref.errors import StorageError
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own
from flexref.tiers.activations import ActivationStore
from flexref.tiers.weights import WeightStore
from flexref.units import Tier

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
SCORED = [ScoredRow(tuple(row)) for row in PROMPTS]
REQUEST = Request(3, ignore_eos=True)
HOME = Policy(rows_per_group=2, overlap=False)
POLICIES = own.policies(cache_schemes=("none",), rows_per_group=2)
KEPT = {"weights", "weight slots", "weight staging", "scratch"}
"""What an engine holds between its jobs."""


class FailureStates(RuleBasedStateMachine):
    """One engine; each job has a policy of its own, and so a plan and weights that may be loaded anew."""

    path: str
    port_of: type

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.steps_left = -1
        run_step = numpy_lanes.run_step

        def may_fail(step: Any) -> tuple[float, float]:
            self.steps_left -= 1
            if self.steps_left == -1:
                raise StorageError("a copy failed")
            return run_step(step)

        self.patch.setattr(numpy_lanes, "run_step", may_fail)

    @initialize()
    def begin(self) -> None:
        self.port = self.port_of()
        self.engine = load(self.path, policy=HOME, backend=self.port)
        self.tokens = self.generate(HOME)
        self.scores = self.score(HOME)

    def generate(self, policy: Policy, **listeners: Any) -> Any:
        self.settle(policy)
        found = self.engine.generate(PROMPTS, REQUEST, **listeners)
        return [output.token_ids for output in found.outputs]

    def score(self, policy: Policy) -> Any:
        self.settle(policy)
        return [row.logprobs.tolist() for row in self.engine.score(SCORED).rows]

    def settle(self, policy: Policy) -> None:
        """Every job from now on runs under `policy`."""
        self.engine.session.settle = always(policy)

    @rule(policy=POLICIES, scores=st.booleans(), steps=st.none() | st.integers(0, 150))
    def run_a_job(self, policy: Policy, scores: bool, steps: int | None) -> None:
        self.steps_left = -1 if steps is None else steps
        try:
            found = (self.score if scores else self.generate)(policy)
        except StorageError:
            assert steps is not None
        else:
            assert steps is None or self.steps_left >= 0, "a failure was not told"
            assert found == (self.scores if scores else self.tokens)
        self.steps_left = -1

    @rule(policy=POLICIES, visits=st.integers(1, 40))
    def fail_in_a_visit(self, policy: Policy, visits: int) -> None:
        numbers = itertools.count(1)

        def fail(*_: Any) -> None:
            if next(numbers) == visits:
                raise ZeroDivisionError

        try:
            assert self.generate(policy, on_visit=fail) == self.tokens
        except ZeroDivisionError:
            pass
        else:
            assert next(numbers) <= visits

    @rule(policy=POLICIES, tokens=st.integers(0, 5))
    def leave_a_stream(self, policy: Policy, tokens: int) -> None:
        self.settle(policy)
        stream = self.engine.stream(PROMPTS, REQUEST)
        assert len(list(itertools.islice(stream, tokens))) == tokens
        stream.close()  # type: ignore[attr-defined]

    @invariant()
    def memory_is_as_between_two_jobs(self) -> None:
        arenas = self.engine.session.arenas
        for tier, arena in arenas.items():
            assert arena.holders.keys() <= KEPT, f"{tier} still has {arena.holders}"
        scratch = arenas[Tier.DEVICE].holders["scratch"]
        assert self.port.live["device"] == arenas[Tier.DEVICE].held_bytes - scratch
        assert self.port.live["host"] == arenas[Tier.HOST].held_bytes

    def teardown(self) -> None:
        self.engine.close()
        self.patch.undo()
        assert not +self.port.live


@pytest.fixture
def machine(tmp_path: Path, model_file: Any, counting: type) -> type[FailureStates]:
    FailureStates.path, FailureStates.port_of = model_file(SPEC), counting
    return FailureStates


def test_blocks_that_fail_give_all_memory_back(machine: type[FailureStates]) -> None:
    # A step is a whole job, so there are fewer of them than a machine has as a rule.
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=8))  # type: ignore[no-untyped-call]


def nothing(*_: Any) -> None:
    """Stands for what is not done."""


def keeps_what_it_shows(store: ActivationStore, arenas: Any = None) -> None:
    for arena, holder, region in store._taken[1:]:
        arena.give_back(holder, region)
    store._taken.clear()


WRONG = (
    (GenerateBlock, "release", nothing),
    (ActivationStore, "release", keeps_what_it_shows),
    (WeightStore, "release", nothing),
)


@pytest.mark.parametrize(("part", "name", "wrong"), WRONG)
def test_blocks_that_do_not_are_caught(
    machine: type[FailureStates], part: type, name: str, wrong: Any, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, name, wrong)
    assert isinstance(caught(machine), AssertionError)
