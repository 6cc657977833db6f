"""A weight file on a port under budgets: arenas, lanes, weights, and the gate that every job passes.

It knows no prompt, no token and no planner: who made it says which policy a job runs under (`Settle`).
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flexref.backend.compiling import compile_time
from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Backend
from flexref.block.budgets import backend_budgets, engine_needs, fitting_block, with_read_ahead
from flexref.block.memory_plan import BlockPlan
from flexref.block.planned_block import PlannedBlock
from flexref.block.rehearsal import Rehearsals
from flexref.block.rows import JobRows, RowLengths
from flexref.block.tracing.trace import Trace
from flexref.engine.account import Account, Standing
from flexref.engine.disk import Disk, RealDisk
from flexref.engine.events import Notice, OnEvent, logged, no_listener
from flexref.engine.gate import Gate
from flexref.engine.held_weights import HeldWeights
from flexref.engine.interrupts import Interrupts
from flexref.engine.own_bits import no_own_bits
from flexref.engine.results import Stats
from flexref.engine.tensors import read_stored, read_tensor
from flexref.engine.wall import Reading, Wall, WallPart
from flexref.errors import CapacityError, PolicyError
from flexref.policy import WEIGHT_SCHEMES, Policy
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile
from flexref.text.tokenizer import Tokenizer
from flexref.tiers.faults import FaultLog
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Traffic
from flexref.tiers.weight_source import check_homes
from flexref.tiers.weights import WeightStore
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier


class Settle(Protocol):
    """Says under which policy a job runs."""

    def __call__(self, session: "Session", rows: Sequence[RowLengths], /) -> Policy:
        """The policy for a job of `rows` on `session`; may raise any `FlexrefError`."""


def always(policy: Policy) -> Settle:
    """Every job runs under `policy`."""
    return lambda session, rows: policy


class Session:
    """What jobs on one engine share. One job at a time has it: all of them pass `gate`.

    While a job works Ctrl-C acts where nothing is half done (`engine.interrupts`). Weights stay where they are as long
    as the policies of the jobs let them. `standing` is that of the latest job, None before the first.
    """

    def __init__(  # noqa: PLR0913 - all that `open_engine` is told of memory and disks
        self,
        file: WeightFile,
        backend: Backend,
        settle: Settle,
        budgets: Mapping[Tier, int | None] | None = None,
        *,
        disk_dir: str | Path | None = None,
        disk: Disk | None = None,
        mirror: str | Path | None = None,
        on_event: OnEvent = no_listener,
        wall: Wall | None = None,
        tokenizer: Tokenizer | None = None,
        graphs: bool = True,
    ) -> None:
        """Without `budgets` what is free is the budget; without `disk` weights come from the file itself, and from
        `mirror`, a copy of it, where it fails. Without a `wall` the first job's whole time begins now. `tokenizer`: the
        file's, if it is made already. `graphs`: whether operators that come again are recorded, where the port can.
        """
        self.file, self.backend, self.settle, self.on_event = file, backend, settle, logged(on_event)
        self.graphs = graphs
        self.budgets = dict(budgets or backend_budgets(backend, None, None))
        self.disk_dir = Path(tempfile.gettempdir() if disk_dir is None else disk_dir)
        self.wall = wall or Wall()
        self.wall.watch(WallPart.COMPILE, compile_time(backend))
        self.wall.watch(WallPart.ALLOCATE, pinning_time(backend))
        self.tokenizer = tokenizer or Tokenizer.if_any(file.tokenizer_json, file.path)
        self.rehearsals = Rehearsals(backend)
        self.interrupts = Interrupts()
        self._traffic = Traffic()
        self.faults = FaultLog()
        self.mover = Mover(backend, self._traffic, self._between_beats)
        self.gate = Gate(self.interrupts, lambda: self.interrupts.forced or self.mover.abandoned)
        self.standing: Standing | None = None
        self._left_alone: list[Any] = []
        second = None if mirror is None else str(mirror)
        self._disk = disk or RealDisk(file, self.disk_dir, second, self.faults.tell)
        self.arenas = {tier: self._arena(tier) for tier in Tier}
        self._weights = HeldWeights(self.mover, self._disk.source, self.arenas, self.wall, self.on_event)
        for tier, holder, nbytes in engine_needs(backend.caps):
            self.arenas[tier].count(holder, nbytes)

    def close(self) -> None:
        """End the stream that is under way, if there is one, give all memory back and end the lanes; once is enough.

        After a job that was broken off while its lanes were at work nothing is waited for: all of it goes with the
        process. Raises `EngineError` if a job is at work just now, and what the stream ends with, when all is closed.
        """
        with self.interrupts:
            if self.gate.closed:
                return
            try:
                self.gate.close()
            finally:  # also if the stream ends with what its lanes ran into
                if self.gate.closed and not self.mover.abandoned:
                    if not self.interrupts.forced:
                        self._weights.release()
                        self.arenas[Tier.HOST].give_up_kept()
                    self.backend.close()
                    self._disk.source.close()

    @property
    def progress(self) -> int:
        """Grows while a lane is in a long read or tries again; any thread may ask."""
        return self._disk.source.progress + self.faults.seen

    def settled(self, rows: Sequence[RowLengths], policy: Policy | None = None) -> Policy:
        """The policy of a job of `rows`: the one given, or what `settle` says, with how far it reads ahead from disk.

        Raises what `check_policy` and, if something is read from disk, `check_homes` raise.
        """
        with self.wall.part(WallPart.PLAN):
            if policy is None:
                policy = self.settle(self, rows)
            check_policy(policy, self.file, self.backend)
            with suppress(CapacityError):  # whoever plans the block is told, and may have rows that fit
                policy = self.reading_ahead(policy, rows)
            return policy

    def reading_ahead(self, policy: Policy, rows: JobRows) -> Policy:
        """The policy with how far a block for `rows` reads ahead from disk; raises what `memory_plan` raises."""
        weights = WeightsPlan.under(self.file, policy)
        if not weights.staging_slot_bytes:
            return policy
        block = self.memory_plan(policy, weights, rows)
        return with_read_ahead(policy, weights, block, self.backend.caps, self.budgets)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor of the model in float32, as `tensors.read_tensor` reads it, also while a job is under way."""
        self.gate.check_usable()
        return read_tensor(self.file, self._disk.source, name)

    def stored(self, name: str) -> npt.NDArray[Any] | Quantized:
        """One tensor of the model as its file holds it, by its exact name; else as `tensor`."""
        self.gate.check_usable()
        return read_stored(self.file.tensors[name], self._disk.source)

    def weights_for(self, policy: Policy) -> WeightStore:
        """The weights as the policy places them, all of them loaded: on the first use, and again when the shares
        change. A job that comes without loads them while it runs.

        `EngineError` while a job is under way.
        """
        with self.gate.work(), self._nothing_refused_is_kept():
            return self._weights.under(WeightsPlan.under(self.file, policy), self._tell_of_faults)

    def memory_plan(self, policy: Policy, weights: WeightsPlan, rows: JobRows) -> BlockPlan:
        """The memory of a block for `rows`; raises what `fitting_block` and `check_homes` raise."""
        check_homes(weights, self._disk.source)
        return fitting_block(weights, self.backend.caps, policy, rows, self.budgets)

    def planned(self, policy: Policy, rows: JobRows) -> PlannedBlock:
        """The block that `rows` go through; raises what `memory_plan` raises."""
        with self.wall.part(WallPart.PLAN):
            weights = WeightsPlan.under(self.file, policy)
            memory = self.memory_plan(policy, weights, rows)
        # What lasts a visit cannot be filled in several passes.
        chunk = None if memory.cache.transient else policy.prompt_chunk_tokens
        return PlannedBlock(memory, weights, chunk, self.graphs)

    def shares_prefixes(self, policy: Policy | None) -> bool:
        """Whether rows may share what they begin with; with no policy yet, whether they may under any."""
        return (policy is None or policy.shares_prefixes) and self.backend.caps.shares_prefixes

    @contextmanager
    def job(self, stats: Stats, asked: Reading, trace: Trace | None = None) -> Iterator[Account]:
        """A job under `stats.policy`, which has passed the gate; its account is written when it ends.

        Its first block is planned before that, and so before weights are read. `asked`: what `wall` had come to when
        the job was asked for. Finished copies are sent to `trace`, those of weights that load as the job begins among
        them; its time 0 is when the first of its jobs comes to them.
        """
        begun = self.wall.begin_job(asked)
        stats.row_invariant = self._keep_rows_apart(stats.policy)
        for arena in self.arenas.values():
            arena.restart_peak()
        self.standing = Standing(stats)
        on_done = None if trace is None else trace.on_done
        self._traffic.restart(on_done)
        if trace is not None:
            trace.begin_job(f"{self.file.spec.name} on {self.backend.name}", time.perf_counter(), self.arenas)
        try:
            with (
                self._nothing_refused_is_kept(),
                self._weights.beside(WeightsPlan.under(self.file, stats.policy), self._tell_of_faults) as weights,
            ):
                account = Account(self.standing, weights, self.arenas, self.wall, trace)
                self._traffic.restart(on_done)  # what was loaded until now is told, and is no part of the job's account
                account.tell_held()
                try:
                    yield account
                finally:
                    self._close(account, begun)
        finally:
            self._traffic.on_done = None

    @contextmanager
    def _nothing_refused_is_kept(self) -> Iterator[None]:
        """The next job gets no host memory of which the system has refused a part: its copies would fail, too."""
        try:
            yield
        finally:
            if pinning_time(self.backend).refused and not self.mover.abandoned:
                self._weights.release()
                self.arenas[Tier.HOST].give_up_kept()

    def _close(self, account: Account, begun: Reading | None) -> None:
        """Write the account of a job that has ended."""
        stats, trace = account.stats, account.trace
        self._tell_of_faults()
        stats.kept_host_bytes = self.arenas[Tier.HOST].kept_bytes
        stats.budget_bytes = {tier.value: budget for tier, budget in self.budgets.items()}
        stats.direct_disk_reads, stats.load_s = self._disk.source.direct, self._weights.load_s
        stats.direct_spills, stats.read_in_vain_bytes = self._disk.spills_direct, self._traffic.in_vain_bytes
        account.close(self._traffic.restart())
        if trace is not None:
            stats.lane_busy = trace.busy_shares()
        stats.count_whole(self.wall.since(begun))

    def _keep_rows_apart(self, policy: Policy) -> bool:
        """Tell the port whether rows need bits of their own, and whether they get them; one notice if they do not."""
        self.backend.keep_rows_apart(policy.row_invariant)
        caps = self.backend.caps
        reason = no_own_bits(policy, caps)
        if policy.row_invariant and caps.computes and reason is not None:
            self.on_event(Notice(f"{self.backend.name} {reason}"))
        return policy.row_invariant and reason is None

    def _between_beats(self) -> None:
        """Called where nothing is half done."""
        self._tell_of_faults()
        self.interrupts.check()

    def _tell_of_faults(self) -> None:
        for fault in self.faults.take():
            self.on_event(fault)

    def _arena(self, tier: Tier) -> Arena:
        if tier is Tier.DISK:
            return Arena(tier, self.budgets[tier], self._disk.allocate, self._releasing(self._disk.release))
        name, caps, release = tier.value, self.backend.caps, self._releasing(self.backend.release)
        keeps = tier is Tier.HOST and caps.computes and not caps.one_memory  # pinned for a device, which takes a while
        return Arena(tier, self.budgets[tier], lambda nbytes: self.backend.allocate(name, nbytes), release, keeps=keeps)

    def _releasing(self, release: Callable[[Any], None]) -> Callable[[Any], None]:
        """Gives places back, but none that a lane may still write to."""
        return lambda place: self._left_alone.append(place) if self.mover.abandoned else release(place)


def check_policy(policy: Any, file: WeightFile, backend: Backend) -> None:
    """`PolicyError` if it is none, was made for another scheme than the file's, or asks what the port cannot do."""
    if not isinstance(policy, Policy):
        raise PolicyError(f"policy must be a Policy, found {policy!r}; Policy.read reads one from a file")
    if policy.weights_scheme is not None and WEIGHT_SCHEMES[policy.weights_scheme] != file.layout:
        raise PolicyError(f"the policy was made for {policy.weights_scheme} weights, {file.path} holds {file.stored}")
    if policy.attention_on == "host" and not backend.caps.attends_on_host:
        lacks = backend.caps.lacks_on_host
        raise PolicyError(f"backend {backend.name} cannot compute attention on the host{lacks and f': {lacks}'}")
