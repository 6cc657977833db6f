"""A job foreseen: the engine's own stores, block and beats, on the port that only counts and a machine's clock.

Decode passes differ only in how much cache they find, so between passes in which a row retires some are simulated and
the others lie on the line between them: their bytes exactly, their seconds as nearly as seconds follow bytes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flexref.backend.registry import create
from flexref.block import executor
from flexref.block.memory_plan import BlockPlan, Lengths, blocks_of, engine_needs, fitting_block, slots_of
from flexref.block.rows import Group, Row
from flexref.block.trace import Trace
from flexref.block.walk import Walk
from flexref.block.watch import Watch
from flexref.machine.machine import Machine
from flexref.policy import Policy
from flexref.schedule.zigzag import Shape
from flexref.simulator.simulated_block import foreseen_block
from flexref.storage.weightfile import WeightFile
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import LINKS, Tier, Traffic
from flexref.tiers.weights import WeightStore
from flexref.tiers.weights_plan import WeightsPlan

Flows = Counter[tuple[str, str]]
"""Bytes by (link, kind)."""

ENDS = 2
"""Passes that are simulated at either end of a stretch of passes with the same rows: what is brought ahead of a pass is
another pass's there."""


@dataclass(frozen=True, slots=True)
class RowLengths:
    """One row of a job: the tokens of its prompt, those that it will generate, and those that are scored instead."""

    prompt_tokens: int
    new_tokens: int
    scored_tokens: int = 0

    @property
    def held(self) -> Lengths:
        """What its cache must hold."""
        return Lengths(self.prompt_tokens, self.prompt_tokens + self.new_tokens - 1, self.scored_tokens)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a job will take: seconds, bytes that are held at most, bytes and busy seconds of links and lanes.

    `load_s` is that of weights from their file. `link_s` are the seconds that copies take, by link and kind, as
    `Stats.link_s`; `lane_busy` is the share of prefill and decode in which each lane is busy.
    """

    rows: int
    blocks: int
    generated_tokens: int
    load_s: float
    prefill_s: float
    decode_s: float
    peak_bytes: Mapping[str, int]
    link_bytes: Mapping[str, Mapping[str, int]]
    link_s: Mapping[str, Mapping[str, float]]
    lane_busy: Mapping[str, float]
    simulated: bool = True
    """False: seconds are the linear program's estimate, and nothing is said of links and lanes."""

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over prefill and decode together."""
        return self.generated_tokens / (self.prefill_s + self.decode_s)

    @property
    def disk_write_bytes(self) -> int:
        """Bytes of cache and activations that are spilled."""
        return sum(self.link_bytes.get("host->disk", {}).values())

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s, "disk_write_bytes": self.disk_write_bytes}


@dataclass
class Account:
    """What a block, or a pass of it, took: sums that can be added and weighed."""

    seconds: float
    flows: Counter[tuple[str, str]]
    flow_s: Counter[tuple[str, str]]
    busy_s: Counter[str]

    @classmethod
    def nothing(cls) -> "Account":
        """The account of no pass."""
        return cls(0.0, Counter(), Counter(), Counter())

    def add(self, other: "Account", times: float = 1) -> None:
        """Add `times` times another account."""
        self.seconds += times * other.seconds
        for mine, theirs in ((self.flows, other.flows), (self.flow_s, other.flow_s), (self.busy_s, other.busy_s)):
            for key, value in theirs.items():
                mine[key] += times * value  # type: ignore[assignment, index]


class NoBytes:
    """Where weights come from when nothing is read: a `tiers.weights.WeightSource` that only has a name."""

    checked = True
    direct = True

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """The dry port calls no work of the host."""
        raise AssertionError("a simulation read weights")

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        """See `read`."""
        raise AssertionError("a simulation read weights")

    def close(self) -> None:
        """There is nothing open."""


class Simulation:
    """A model's weights at home on a machine that is not there, and blocks that run on it."""

    def __init__(self, file: WeightFile, machine: Machine, policy: Policy, budgets: Mapping[Tier, int | None]) -> None:
        """Raises `CapacityError` if the weights alone exceed a budget."""
        self.file, self.machine, self.policy, self.budgets = file, machine, policy, budgets
        self.backend = cast(Any, create("dry", machine=machine))
        self._traffic = Traffic()
        self._mover = Mover(self.backend, self._traffic)
        self.arenas = {
            tier: Arena(tier, budget, partial(self.backend.allocate, tier.value), self.backend.release)
            for tier, budget in budgets.items()
        }
        for tier, holder, nbytes in engine_needs(self.backend.caps):
            self.arenas[tier].count(holder, nbytes)
        plan = WeightsPlan.of(file, policy.weights, slots_of(policy))
        self._weights = WeightStore(plan, self._mover, NoBytes())
        self._weights.allocate(self.arenas)
        self._weights.load(self.arenas)
        self.load_s: float = self.backend.timing.now_s

    def plan(self, rows: Sequence[RowLengths]) -> BlockPlan:
        """The memory of a block of `rows`; raises `CapacityError`."""
        lengths = [row.held for row in rows]
        return fitting_block(self._weights.plan, self.backend.caps, self.policy, lengths, self.budgets)

    def run(self, rows: Sequence[RowLengths], trace: Trace | None = None) -> tuple[Account, Account]:
        """The accounts of (prefill, decode) of a block; with `trace` every pass is simulated."""
        plan, step = self.plan(rows), self.policy.rows_per_group
        made = [
            Row(number, (0,) * row.prompt_tokens, row.new_tokens, scored=row.scored_tokens)
            for number, row in enumerate(rows)
        ]
        groups = [Group(made[first : first + step]) for first in range(0, len(made), step)]
        limits = sorted({row.new_tokens for row in rows})
        passes = list(range(limits[-1])) if trace is not None else simulated_passes(limits)
        weights = self._weights.plan
        shape = Shape(len(passes), len(weights.stages), len(groups), weights.slots, plan.moving(weights))
        watch = Watch(
            on_computed=None if trace is None else trace.on_computed,
            on_visit=lambda stage, group, turn: self.backend.timing.spend(self.machine.host_s.visit),
        )
        block = foreseen_block(plan, self._weights, self._mover, groups, shape, watch)
        self._traffic.on_done = None if trace is None else trace.on_done
        block.allocate(self.arenas)
        try:
            accounts = list(self._passes(block, shape, passes))
        finally:
            block.release()
        return accounts[0], interpolated(dict(zip(passes[1:], accounts[1:], strict=True)))

    def _passes(self, block: Walk, shape: Shape, passes: Sequence[int]) -> Iterator[Account]:
        """The account of every pass that is simulated, the last one's with what is still under way at its end."""
        before = self._seen()
        for visit in executor.run(self._mover, block, shape, overlap=self.policy.overlap):
            if visit.stage != shape.stages - 1 or visit.group != shape.groups - 1:
                continue
            block.tell_watch()
            if visit.turn < shape.turns - 1:
                now = self._seen()
                yield _difference(now, before)
                before = now
                skipped = passes[visit.turn + 1] - passes[visit.turn] - 1
                for group in block.groups:
                    group.skip(skipped)
        yield _difference(self._seen(), before)

    def _seen(self) -> Account:
        """The clock, the traffic and the lanes until now."""
        now_s = self.backend.timing.now_s
        flows, flow_s = self._traffic.snapshot(), {key: flow.seconds for key, flow in self._traffic.flows.items()}
        return Account(now_s, flows, Counter(flow_s), Counter(self.backend.timing.clock.busy_s))  # type: ignore[arg-type]

    def peak_bytes(self) -> dict[str, int]:
        """The most that each tier held."""
        return {tier.value: arena.peak_bytes for tier, arena in self.arenas.items()}


def _difference(now: Account, before: Account) -> Account:
    made = Account.nothing()
    made.add(now)
    made.add(before, -1)
    return made


def simulated_passes(limits: Sequence[int]) -> list[int]:
    """Which passes to simulate for rows that retire after so many tokens (rising): see the module's first lines."""
    chosen, first = [0], 1
    for limit in limits:
        last = limit - 1
        inner = range(first, last + 1)
        if len(inner) > 2 * ENDS + 1:
            middle = (first + last) // 2
            inner_passes = [*inner[:ENDS], middle, *inner[-ENDS:]]
        else:
            inner_passes = list(inner)
        chosen += inner_passes
        first = max(first, last + 1)
    return chosen


def interpolated(accounts: Mapping[int, Account]) -> Account:
    """The sum over all passes from the first to the last, those left out on the line between their neighbours."""
    total = Account.nothing()
    known = sorted(accounts)
    for number, account in accounts.items():
        total.add(account)
        after = known[known.index(number) + 1] if number != known[-1] else number + 1
        between = after - number - 1
        if between:
            total.add(account, between / 2)
            total.add(accounts[after], between / 2)
    return total


def simulate(
    file: WeightFile,
    machine: Machine,
    policy: Policy,
    rows: Sequence[RowLengths],
    budgets: Mapping[Tier, int | None] | None = None,
    trace: Trace | None = None,
) -> Prediction:
    """What `rows` will take on `machine`; without budgets its capacities are those.

    Blocks of the same lengths are simulated once. `trace` is given the first block, every pass of it. Raises
    `CapacityError` if the policy does not fit.
    """
    limits = budgets or {tier: machine.capacity_bytes[tier.value] for tier in Tier}
    simulation = Simulation(file, machine, policy, limits)
    blocks = blocks_of(rows, policy)
    alike = Counter(tuple(block) for block in blocks)
    prefill, decode = Account.nothing(), Account.nothing()
    for block, count in alike.items():
        parts = simulation.run(block, trace)
        trace = None
        prefill.add(parts[0], count)
        decode.add(parts[1], count)
    whole = Account.nothing()
    for part in (prefill, decode):
        whole.add(part)
    return Prediction(
        rows=len(rows),
        blocks=len(blocks),
        generated_tokens=sum(row.new_tokens for row in rows if not row.scored_tokens),
        load_s=simulation.load_s,
        prefill_s=prefill.seconds,
        decode_s=decode.seconds,
        peak_bytes=simulation.peak_bytes(),
        link_bytes=_by_link({key: round(nbytes) for key, nbytes in whole.flows.items()}),
        link_s=_by_link(whole.flow_s),
        lane_busy={lane: seconds / whole.seconds for lane, seconds in sorted(whole.busy_s.items())},
    )


def _by_link(flows: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {link: {} for link in LINKS.values()}
    for (link, kind), value in sorted(flows.items()):
        if value:
            table[link][kind] = value
    return table
