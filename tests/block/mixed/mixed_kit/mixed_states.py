"""A machine of jobs on one engine whose rows share prefixes, are cut into chunks, come late, end early or never fit.

What is looked at: the tokens and logits of each row beside those that it has alone, to the bit; places, prefixes and
memory, of which nothing is lost or used twice; the plan's peaks; who waits; what everybody is told in the end.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flexref.block.budgets import totals
from flexref.block.rows import Row
from flexref.block.state import BlockState
from flexref.engine.events import Listeners
from flexref.engine.generation import GenerationJob
from flexref.engine.results import StreamedToken
from flexref.errors import EngineError
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own
from flexref.units import Tier
from mixed_kit.alone import Asked, Gone, arriving, request_of, requests
from mixed_kit.block_laws import look_at_places, look_at_prefixes, look_at_what_is_left
from mixed_kit.job_laws import JobLaws
from mixed_kit.late_port import CALL_BYTES

KEPT = {"weights", "weight slots", "weight staging", "scratch"}
"""What is held between two jobs."""

LOOKS_ON = ("nobody", "nobody", "logits", "visits")


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Of every kind, and half of those under which all stays on the device: then passes are called ahead."""
    chunk = draw(st.sampled_from((None, None, 40, 64, 100, 3)))
    where = draw(st.sampled_from(("device", "device", "host")))
    drawn = draw(own.policies(cache_group_size=8, prompt_chunk_tokens=chunk, attention_on=where))
    if draw(st.booleans()):
        return drawn
    home = Policy()
    still = {"weights": home.weights, "cache": home.cache, "activations": home.activations}
    return drawn.changed(**still, attention_on="device", host_attention_share=1.0)


class MixedStates(JobLaws, RuleBasedStateMachine):
    """Jobs one after the other on one engine; rows of a job that was left begin again in the next one."""

    path: str
    make_port: Any

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Generator[StreamedToken | None, None, None] | None = None
        self.begins_again, self.scheme = list[Asked](), "none"
        self.blocks = list[BlockState]()
        self.patch = pytest.MonkeyPatch()

    @initialize(recorded_calls=st.sampled_from((1 << 10, 1 << 10, 60, 0)))
    def load(self, recorded_calls: int) -> None:
        allocate = BlockState.allocate

        def kept(block: BlockState, arenas: Any) -> None:
            if block.backend is self.port:  # and not that on which rows are alone
                self.blocks.append(block)
            allocate(block, arenas)

        self.patch.setattr(BlockState, "allocate", kept)
        self.port = self.make_port(recorded_calls * CALL_BYTES)
        self.engine = load(self.path, policy=Policy(), backend=self.port)

    # A job begins

    @precondition(lambda self: self.tokens is None)
    @rule(
        policy=policies(),
        asked=requests(),
        window=st.sampled_from((8, 1, 2, 3, 20)),
        raises=st.sampled_from((False, False, True)),
        tight=st.sampled_from((None, None, None, Tier.DEVICE, Tier.HOST)),
        fitting=st.integers(1, 4),
        looks_on=st.sampled_from(LOOKS_ON),
    )
    def begin(self, **given: Any) -> None:
        policy, self.raises, self.looks_on = given["policy"], given["raises"], given["looks_on"]
        if self.begins_again:  # what they had was computed on caches of one scheme
            policy = policy.changed(cache_scheme=self.scheme)
        if not self.port.caps.one_memory:  # rows have bits of their own only where one processor attends to all
            policy = policy.changed(attention_on="device", host_attention_share=1.0)
        self.scheme, self.chunk = policy.cache_scheme, policy.prompt_chunk_tokens
        self.asked = [*self.begins_again, *given["asked"]]
        self.begins_again = []
        requests = [request_of(each, self.expected(each)[0] if each.begun else []) for each in self.asked]
        self.begin_to_look(given["window"])
        self.fails = False
        self.blocks.clear()
        self.held = {tier: arena.held_bytes for tier, arena in self.engine.session.arenas.items()}
        self.patch.setattr("flexref.engine.generation._window", lambda policy: self.window)
        if given["tight"] is not None:
            self.give(given["tight"], self.least_bytes(policy, given["tight"], given["fitting"]))
        hears = {"logits": "on_logits", "visits": "on_visit"}.get(self.looks_on)
        listeners = Listeners(**({} if hears is None else {hears: getattr(self, hears)}))
        rows = arriving(requests, self.raises, self.arrived)
        self.job = GenerationJob(self.engine.session, rows, policy, listeners)
        self.tokens = self.job.run()
        self.look_at_who_waits()

    def least_bytes(self, policy: Policy, tier: Tier, fitting: int) -> int:
        """What a block for so many of the shortest rows takes."""
        rows = [Row(0, each.prompt, each.most) for each in self.asked if each.can_be_served]
        lengths = sorted((row.lengths for row in rows), key=lambda row: row.capacity_tokens)[:fitting]
        if not lengths:
            return 1 << 30
        planned = self.engine.session.planned(policy, lengths)
        return max(totals(needs)[tier] for needs in self.needs_of(planned)[:2])

    def give(self, tier: Tier, nbytes: int | None) -> None:
        """So much is the tier's budget from now on; None: there is none."""
        self.engine.session.budgets[tier] = self.engine.session.arenas[tier].budget_bytes = nbytes

    # It goes on

    @precondition(lambda self: self.tokens is not None)
    @rule(steps=st.integers(1, 9), asks_for_another=st.sampled_from((False, False, True)))
    def go_on(self, steps: int, asks_for_another: bool) -> None:
        if asks_for_another and self.at_work is not None:
            with pytest.raises(EngineError, match="at work"):
                self.engine.generate([[1]], max_new_tokens=1)
        for _ in range(steps):
            if self.tokens is None:
                return
            self.step()

    @precondition(lambda self: self.tokens is not None)
    @rule()
    def go_on_to_the_end(self) -> None:
        while self.tokens is not None:
            self.step()

    def step(self) -> None:
        assert self.tokens is not None
        try:
            token = next(self.tokens)
        except StopIteration:
            self.end()
            return
        except Gone:
            assert self.fails
            self.leave()
            return
        if token is not None:
            self.hear(token)
        self.take_results()
        self.look_at_who_waits()
        self.look_at_the_block()

    def on_logits(self, numbers: Any, steps: Any, found: Any) -> None:
        self.maybe_fail()
        self.look_at_logits(numbers, steps, found)

    def on_visit(self, *_: Any) -> None:
        self.maybe_fail()

    def maybe_fail(self) -> None:
        if self.fails:
            raise Gone

    # Somebody changes their mind

    @precondition(lambda self: self.at_work is not None)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        block = self.at_work
        inside = [] if block is None else [row for group in block.groups for row in group.rows]
        if inside:
            row = inside[data.draw(st.integers(0, len(inside) - 1))]
            row.finish_reason = "stop"
            self.cancelled.add(row.number)

    @precondition(lambda self: self.at_work is not None and len(self.job._waiting) > 0)
    @rule(data=st.data())
    def cancel_one_that_waits(self, data: st.DataObject) -> None:
        rows = self.job._waiting.rows
        row = rows[data.draw(st.integers(0, len(rows) - 1))]
        self.dropped.add(row.number)
        self.job._fail(row, EngineError("nobody wants it any more"))

    @precondition(lambda self: self.tokens is not None and self.looks_on != "nobody")
    @rule()
    def whoever_looks_on_fails(self) -> None:
        self.fails = True

    @precondition(lambda self: self.tokens is not None)
    @rule()
    def stop_listening(self) -> None:
        assert self.tokens is not None
        with closing(self.tokens):
            self.take_results()
        self.leave()

    @precondition(lambda self: self.at_work is not None)
    @rule(none=st.booleans())
    def the_device_has_memory_for_recordings_or_none(self, none: bool) -> None:
        self.port.full = none

    # It ends

    def leave(self) -> None:
        """Rows that have not ended begin again in the next job, with the tokens that were told."""
        for number in self.arrived:
            asked = self.asked[number]
            if number not in self.results and number not in self.cancelled and asked.can_be_served:
                self.begins_again.append(replace(asked, begun=self.told[number]))
        self.look_at_memory()

    def end(self) -> None:
        self.take_results()
        assert isinstance(self.job.failure, Gone) == self.raises
        self.look_at_the_results()
        for block in self.blocks:
            look_at_what_is_left(block)
        self.look_at_the_account()
        self.look_at_memory()

    def look_at_memory(self) -> None:
        """No job is under way: what is held is what an engine keeps."""
        self.tokens = None
        for tier in (Tier.DEVICE, Tier.HOST):
            self.give(tier, None)
        arenas = self.engine.session.arenas
        for tier, arena in arenas.items():
            assert arena.holders.keys() <= KEPT, f"{tier} still has {arena.holders}"
        scratch = arenas[Tier.DEVICE].holders["scratch"]
        assert self.port.live["device"] == arenas[Tier.DEVICE].held_bytes - scratch
        assert self.port.live["host"] == arenas[Tier.HOST].held_bytes + arenas[Tier.HOST].kept_bytes
        assert not self.port.alive, "recordings are left"

    # What is always so

    @property
    def at_work(self) -> BlockState | None:
        """The block that has memory now."""
        return self.blocks[-1] if self.blocks and self.blocks[-1]._taken else None

    @invariant()
    def look_at_the_block(self) -> None:
        if self.at_work is not None:
            look_at_places(self.at_work, self.chunk)
            look_at_prefixes(self.at_work)

    def teardown(self) -> None:
        self.go_on_to_the_end()
        self.engine.close()
        self.patch.undo()
        assert not +self.port.live
