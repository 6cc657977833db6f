"""Simulates a job: the engine's own stores, block and beats, on the port that only counts, with a machine's clock.

All rows are walked through the block without it (`job_walk`): so it is known what every pass feeds and finds, and from
that what it moves, to the byte. Some of the passes are run on the clock, and give the seconds of all (`estimated`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.backend.timed import TimedBackend
from flexref.block import executor
from flexref.block.admission import WINDOWS
from flexref.block.budgets import totals
from flexref.block.counted_rows import kinds_of, rows_under
from flexref.block.rows import AlikeRows, JobRows
from flexref.block.tracing.trace import Trace
from flexref.block.watch import Watch
from flexref.engine.session import Session, always
from flexref.errors import WeightFileError
from flexref.machine.machine import Machine
from flexref.policy import Policy
from flexref.schedule.zigzag import Shape
from flexref.simulator.estimated import ENDS, RECORDED_FROM, estimated, simulated_passes
from flexref.simulator.extended import extended, generated_tokens
from flexref.simulator.job_walk import Walk, walked
from flexref.simulator.moved_bytes import MovedBytes
from flexref.simulator.pass_account import PassAccount
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulated_block import SimulatedBlock, simulated_block, waiting_rows
from flexref.storage.weightfile import WeightFile
from flexref.tiers.weight_source import Bytes, MakeChecker, WeightSource
from flexref.tiers.weights_plan import LOADING
from flexref.units import LINK_OF, Tier

ALIKE_BLOCKS = 4
"""Of rows that are alike and more than fill so many blocks, each block more is known to take what the one before took:
one block fewer is simulated, and two."""


class NoBytes:
    """A `tiers.weight_source.WeightSource` for a port that reads nothing."""

    checked = True
    direct = True
    progress = 0
    path = "no file"

    def read(self, offset: int, into: Bytes, checker: MakeChecker | None = None) -> None:
        """Never called: the dry port does not run the work of host lanes."""
        raise AssertionError("a simulation read weights")

    def ask_ahead(self, offset: int, into: Bytes) -> None:
        """Nothing is asked for."""

    def read_rows(
        self, offsets: npt.NDArray[np.int64], into: Bytes, checksums: npt.NDArray[np.uint64] | None = None
    ) -> None:
        """See `read`."""
        raise AssertionError("a simulation read weights")

    def reading(self, offset: int, nbytes: int) -> "NoBytes":
        """Nothing is read of it, either."""
        return self

    def begin_again(self, error: WeightFileError) -> None:
        """See `read`."""
        raise error

    def check_unchanged(self) -> None:
        """Does nothing: there is no file that could change."""

    def close(self) -> None:
        """Does nothing: no file is open."""


class NoDisk:
    """The disk of a simulated machine (an `engine.disk.Disk`): its space is counted by the dry port."""

    def __init__(self, backend: Backend) -> None:
        self.source: WeightSource = NoBytes()
        self.spills_direct = True
        self._backend = backend

    def allocate(self, nbytes: int) -> Any:
        """Space on the disk, without bytes in it."""
        return self._backend.allocate("disk", nbytes)

    def release(self, place: Any) -> None:
        """Give space back."""
        self._backend.release(place)


@dataclass(frozen=True)
class SimulatedJob:
    """A job's passes, the places of its block, bytes by (link, kind), and what passes took: those that only read, and
    the others."""

    walk: Walk
    places: int
    moved: Counter[tuple[str, str]]
    prefill: PassAccount
    decode: PassAccount

    @property
    def occupancy(self) -> float:
        """Rows over places, on average over passes."""
        return float(self.walk.column("rows").sum()) / (self.places * self.walk.passes)


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
        self._session.weights_for(policy)
        self.load_s = self.backend.timing.now_s

    def run(self, rows: JobRows, trace: Trace | None = None) -> SimulatedJob:
        """Simulate a job. `trace` is told of as many passes as the row that generates most is in the block for.

        Raises `CapacityError` if its block does not fit.
        """
        session, window = self._session, WINDOWS * self.policy.rows_per_block
        policy = session.reading_ahead(self.policy, rows)
        planned, weights = session.planned(policy, rows), session.weights_for(policy)
        walk = walked(planned, waiting_rows(rows, window), self.backend.caps.compute_dtype)
        traced = 0 if trace is None else max(row.new_tokens for row in kinds_of(rows))
        beginning = RECORDED_FROM if self.backend.caps.replays else ENDS
        passes = simulated_passes(walk, traced, beginning)
        watch = Watch(None if trace is None else trace.on_computed)
        block = simulated_block(planned, weights, session.mover, waiting_rows(rows, window), rows, watch)
        block.after_visit = self._visit
        session.mover.traffic.on_done = None if trace is None else trace.on_done
        if trace is not None:
            name = f"{session.file.spec.name} on {self.machine.name}, simulated"
            trace.begin_job(name, self.backend.timing.now_s, session.arenas)
            trace.begin_block()
        self._allocate(block)
        self._tell_held(trace)
        try:
            accounts = dict(zip(passes, self._passes(block, passes, traced), strict=True))
        finally:
            block.release()
            self._tell_held(trace)
        moved = MovedBytes(planned, weights, self.backend.caps.compute_dtype).of(walk)
        return SimulatedJob(walk, planned.places, moved, *estimated(walk, accounts, traced, beginning))

    def _allocate(self, block: SimulatedBlock) -> None:
        """Take the block's memory as a job does whose weights load beside its first pass (`WeightStore.begin`)."""
        arenas, planned = self._session.arenas, block.planned
        host = arenas[Tier.HOST]
        if not host.has_room(planned.weights.loading_beside_bytes):
            block.allocate(arenas)
            return
        places = host.take(LOADING, planned.weights.loading_beside_bytes)
        beside = host.has_room(totals(planned.memory.needs())[Tier.HOST])
        if not beside:
            host.give_back(LOADING, places)
        block.allocate(arenas)
        if beside:
            host.give_back(LOADING, places)

    def _tell_held(self, trace: Trace | None) -> None:
        if trace is not None:
            trace.on_held(self.backend.timing.now_s, self._session.arenas)

    def _visit(self) -> None:
        """The host's own work for a visit."""
        self.backend.timing.spend(self.machine.host_s.visit)

    def _passes(self, block: SimulatedBlock, passes: Sequence[int], traced: int) -> Iterator[PassAccount]:
        """The account of every simulated pass; of the first `traced` a trace is told.

        What is still under way after the last pass counts as part of it. If passes may be called ahead, the one before
        each that comes after a gap runs too: what was called ahead for the first pass of the gap falls into it.
        """
        wanted, run = {*passes}, self._run_for(passes, block.shape)
        before, shape, last = self._seen(), block.shape, len(run) - 1
        for visit in executor.run(self._session.mover, block, shape, overlap=self.policy.overlap):
            if not shape.ends_pass(visit):
                continue
            block.tell_watch()
            block.waiting.refill()
            if visit.pass_number == traced - 1 < last:
                self._session.mover.harvest()
                self._session.mover.traffic.on_done, block.watch = None, Watch()
            if visit.pass_number < last:
                now, number = self._seen(), run[visit.pass_number]
                if number in wanted:
                    yield now.since(before)
                before = now
                for _ in range(run[visit.pass_number + 1] - number - 1):
                    block.rows.skip_pass()
        yield self._seen().since(before)

    def _run_for(self, passes: Sequence[int], shape: Shape) -> Sequence[int]:
        """The passes that are run for the accounts of `passes`, in order. None is called ahead where anything moves."""
        if shape.kinds or not self.backend.caps.replays:
            return passes
        gaps = [after for before, after in pairwise(passes) if after - before > 1]
        return sorted({*passes, *(after - 1 for after in gaps)})

    def _seen(self) -> PassAccount:
        """The sums until now of the clock, the traffic and the lanes."""
        now_s, traffic = self.backend.timing.now_s, self._session.mover.traffic
        flow_s = Counter({key: flow.seconds for key, flow in traffic.flows.items()})
        return PassAccount(now_s, flow_s, Counter(self.backend.timing.busy_s))

    def peak_bytes(self) -> dict[str, int]:
        """The most that each tier held."""
        return {tier.value: arena.peak_bytes for tier, arena in self._session.arenas.items()}


def simulate(
    file: WeightFile,
    machine: Machine,
    policy: Policy,
    rows: JobRows,
    budgets: Mapping[Tier, int | None] | None = None,
    trace: Trace | None = None,
) -> Prediction:
    """Predict what `rows` take on `machine` with `policy`. Without `budgets` (bytes), the machine's capacities count.

    Of very many rows that are alike only some are simulated: they all come and leave at once. `trace` is told of some
    passes (see `Simulation.run`). Raises `CapacityError` if the policy does not fit.
    """
    limits = budgets or {tier: machine.capacity_bytes[tier.value] for tier in Tier}
    rows = rows_under(rows, policy)
    kinds, size = kinds_of(rows), policy.rows_per_block
    if len(kinds) == 1 and len(rows) > ALIKE_BLOCKS * size:
        (row,) = kinds
        longest = len(rows) % size + (ALIKE_BLOCKS - 1) * size
        longer = _predicted(Simulation(file, machine, policy, limits), AlikeRows(row, longest), trace)
        shorter = _predicted(Simulation(file, machine, policy, limits), AlikeRows(row, longest - size))
        return extended(shorter, longer, kinds)
    return _predicted(Simulation(file, machine, policy, limits), rows, trace)


def _predicted(simulation: Simulation, rows: JobRows, trace: Trace | None = None) -> Prediction:
    job = simulation.run(rows, trace)
    whole = PassAccount.nothing()
    for part in (job.prefill, job.decode):
        whole.add(part)
    return Prediction(
        rows=len(rows),
        blocks=1,
        passes=job.walk.passes,
        places=job.places,
        occupancy=job.occupancy,
        generated_tokens=generated_tokens(kinds_of(rows)),
        load_s=simulation.load_s,
        prefill_s=job.prefill.seconds,
        decode_s=job.decode.seconds,
        peak_bytes=simulation.peak_bytes(),
        link_bytes=_by_link(job.moved),
        disk_write_bytes=int(job.walk.column("spilled_bytes").sum()),
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
