"""Simulates a job: the engine's own stores, block and beats, on the port that only counts, with a machine's clock.

Between two passes in which a row retires, decode passes differ only in the length of the cache. So only some of them
are simulated, and the others are interpolated linearly. For bytes that is exact; for seconds it is as good as seconds
are proportional to bytes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.backend.timed import TimedBackend
from flexref.block import executor
from flexref.block.admission import WINDOWS, Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.counted_rows import rows_under
from flexref.block.generate_block import GenerateBlock
from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import Fed, JobRows, counted
from flexref.block.score_block import ScoreBlock
from flexref.block.trace import Trace
from flexref.block.watch import Watch
from flexref.engine.session import Session, always
from flexref.machine.machine import Machine
from flexref.policy import Policy
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulated_block import simulated_block, waiting_rows
from flexref.storage.weightfile import WeightFile
from flexref.tiers.weight_source import WeightSource
from flexref.units import LINK_OF, Tier

ENDS = 2
"""So many passes are simulated at both ends of a stretch of passes with the same rows: near an end, what is loaded
ahead belongs to a pass with other rows."""


@dataclass
class SimulatedAccount:
    """What a block, or one pass of it, took: seconds, bytes and seconds by link and kind, busy seconds by lane."""

    seconds: float
    flows: Counter[tuple[str, str]]
    flow_s: Counter[tuple[str, str]]
    busy_s: Counter[str]

    @classmethod
    def nothing(cls) -> "SimulatedAccount":
        """An account of zeros."""
        return cls(0.0, Counter(), Counter(), Counter())

    def add(self, other: "SimulatedAccount", times: float = 1) -> None:
        """Add another account, multiplied by `times`."""
        self.seconds += times * other.seconds
        for mine, theirs in ((self.flows, other.flows), (self.flow_s, other.flow_s), (self.busy_s, other.busy_s)):
            for key, value in theirs.items():
                mine[key] += times * value  # type: ignore[assignment, index]


class NoBytes:
    """A `tiers.weight_source.WeightSource` for a port that reads nothing."""

    checked = True
    direct = True

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Never called: the dry port does not run the work of host lanes."""
        raise AssertionError("a simulation read weights")

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        """See `read`."""
        raise AssertionError("a simulation read weights")

    def check_unchanged(self) -> None:
        """Does nothing: there is no file that could change."""

    def close(self) -> None:
        """Does nothing: no file is open."""


class NoDisk:
    """The disk of a simulated machine (an `engine.session.Disk`): its space is counted by the dry port."""

    def __init__(self, backend: Backend) -> None:
        self.source: WeightSource = NoBytes()
        self._backend = backend

    def allocate(self, nbytes: int) -> Any:
        """Space on the disk, without bytes in it."""
        return self._backend.allocate("disk", nbytes)

    def release(self, place: Any) -> None:
        """Give space back."""
        self._backend.release(place)


class Simulation:
    """A session on a simulated machine: the weights are loaded, and blocks can run."""

    def __init__(self, file: WeightFile, machine: Machine, policy: Policy, budgets: Mapping[Tier, int | None]) -> None:
        """Raises `CapacityError` if the weights alone exceed a budget."""
        self.machine, self.policy = machine, policy
        port: Any = create("dry", machine=machine)
        self.backend: TimedBackend = port
        # No text is needed, and loading a tokenizer takes longer than simulating the job.
        wordless = replace(file, tokenizer_json=None)
        self._session = Session(wordless, self.backend, always(policy), budgets, disk=NoDisk(self.backend))
        self._weights = self._session.weights_for(policy)
        self.load_s = self.backend.timing.now_s

    def run(self, rows: JobRows, trace: Trace | None = None) -> tuple[SimulatedAccount, SimulatedAccount]:
        """Simulate a job and return its accounts of prefill and decode. With `trace`, every pass is simulated.

        Raises `CapacityError` if its block does not fit.
        """
        session, window = self._session, WINDOWS * self.policy.rows_per_block
        planned = session.planned(self.policy, rows)
        passes = simulated_passes(planned, waiting_rows(rows, window), every=trace is not None)
        watch = Watch(
            on_computed=None if trace is None else trace.on_computed,
            on_visit=lambda stage, group, pass_number: self.backend.timing.spend(self.machine.host_s.visit),
        )
        waiting = waiting_rows(rows, window)
        block = simulated_block(planned, self._weights, session.mover, waiting, rows, watch)
        session.mover.traffic.on_done = None if trace is None else trace.on_done
        if trace is not None:
            name = f"{session.file.spec.name} on {self.machine.name}, simulated"
            trace.begin_job(name, self.backend.timing.now_s, session.arenas)
            trace.begin_block()
        block.allocate(session.arenas)
        self._tell_held(trace)
        prefill, decode = dict[int, SimulatedAccount](), dict[int, SimulatedAccount]()
        try:
            for number, (account, fed) in zip(passes, self._passes(block, planned, passes), strict=True):
                (decode if fed.generated_tokens else prefill)[number] = account
        finally:
            block.release()
            self._tell_held(trace)
        return interpolated(prefill), interpolated(decode)

    def _tell_held(self, trace: Trace | None) -> None:
        if trace is not None:
            trace.on_held(self.backend.timing.now_s, self._session.arenas)

    def _passes(
        self, block: GenerateBlock | ScoreBlock, planned: PlannedBlock, passes: Sequence[int]
    ) -> Iterator[tuple[SimulatedAccount, Fed]]:
        """The account of every simulated pass, and what it fed.

        What is still under way after the last pass counts as part of it.
        """
        before, shape, last = self._seen(), planned.shape, len(passes) - 1
        for visit in executor.run(self._session.mover, block, shape, overlap=self.policy.overlap):
            if not shape.ends_pass(visit):
                continue
            block.tell_watch()
            block.waiting.refill()
            if visit.pass_number < last:
                now = self._seen()
                yield _difference(now, before), block.take_fed()
                before = now
                for _ in range(passes[visit.pass_number + 1] - passes[visit.pass_number] - 1):
                    block.rows.skip_pass()
        yield _difference(self._seen(), before), block.take_fed()

    def _seen(self) -> SimulatedAccount:
        """The sums until now of the clock, the traffic and the lanes."""
        now_s = self.backend.timing.now_s
        traffic = self._session.mover.traffic
        flows, flow_s = traffic.snapshot(), {key: flow.seconds for key, flow in traffic.flows.items()}
        return SimulatedAccount(now_s, flows, Counter(flow_s), Counter(self.backend.timing.busy_s))

    def peak_bytes(self) -> dict[str, int]:
        """The most that each tier held."""
        return {tier.value: arena.peak_bytes for tier, arena in self._session.arenas.items()}


def _difference(now: SimulatedAccount, before: SimulatedAccount) -> SimulatedAccount:
    """What was added between two sums."""
    made = SimulatedAccount.nothing()
    made.add(now)
    made.add(before, -1)
    return made


def simulated_passes(planned: PlannedBlock, waiting: Waiting, *, every: bool) -> list[int]:
    """The passes to simulate: in a stretch in which the same rows generate, they are alike but for what is past."""
    rows = BlockRows(planned.memory.cache, waiting, planned.prompt_chunk_tokens)
    chosen, stretch, number = [], list[int](), 0
    while rows.alive():
        changes = rows.admission.admitted, rows.admission.retired
        reads = any(group.fed_in_pass.prompt_tokens for group in rows.groups)
        stretch.append(number)
        rows.skip_pass()
        number += 1
        if reads or changes != (rows.admission.admitted, rows.admission.retired) or not rows.alive():
            middle = [stretch[len(stretch) // 2]] if len(stretch) > 2 * ENDS else []
            ends = stretch if every or len(stretch) <= 2 * ENDS + 1 else [*stretch[:ENDS], *middle, *stretch[-ENDS:]]
            chosen += ends
            stretch = []
    return chosen


def interpolated(accounts: Mapping[int, SimulatedAccount]) -> SimulatedAccount:
    """The sum over all passes from the first to the last; those that were not simulated are interpolated linearly."""
    total = SimulatedAccount.nothing()
    known = sorted(accounts)  # prefill passes are all simulated: none is between two of them
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
    rows: JobRows,
    budgets: Mapping[Tier, int | None] | None = None,
    trace: Trace | None = None,
) -> Prediction:
    """Predict what `rows` take on `machine` with `policy`. Without `budgets` (bytes), the machine's capacities count.

    Blocks of equal lengths are simulated once. `trace` is told of every pass of the first block. Raises
    `CapacityError` if the policy does not fit.
    """
    limits = budgets or {tier: machine.capacity_bytes[tier.value] for tier in Tier}
    simulation, rows = Simulation(file, machine, policy, limits), rows_under(rows, policy)
    prefill, decode = simulation.run(rows, trace)
    whole = SimulatedAccount.nothing()
    for part in (prefill, decode):
        whole.add(part)
    return Prediction(
        rows=len(rows),
        blocks=1,
        generated_tokens=sum(row.new_tokens * count for row, count in counted(rows).items() if not row.scored_tokens),
        load_s=simulation.load_s,
        prefill_s=prefill.seconds,
        decode_s=decode.seconds,
        peak_bytes=simulation.peak_bytes(),
        link_bytes=_by_link({key: round(nbytes) for key, nbytes in whole.flows.items()}),
        link_s=_by_link(whole.flow_s),
        lane_busy={str(lane): seconds / whole.seconds for lane, seconds in sorted(whole.busy_s.items())},
    )


def _by_link(flows: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """{link: {kind: value}} of every link, without values of 0."""
    table: dict[str, dict[str, Any]] = {link: {} for link in LINK_OF.values()}
    for (link, kind), value in sorted(flows.items()):
        if value:
            table[link][kind] = value
    return table
