"""The engine: one weight file on one port under budgets, and the jobs that run on it, block by block."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from flexref.backend.protocol import Backend
from flexref.block.memory_plan import BlockPlan, Lengths, backend_budgets, engine_needs, fitting_block, slots_of
from flexref.block.trace import Trace
from flexref.block.watch import OnLogits, OnVisit
from flexref.engine.gate import Gate
from flexref.engine.generation import AnyPrompt, Job, Request
from flexref.engine.interrupts import Interrupts
from flexref.engine.results import Generation, StreamedToken
from flexref.engine.scoring import Listener, ScoredRow, Scores, ScoringJob
from flexref.errors import PolicyError
from flexref.machine.machine import Machine
from flexref.planner.choose import Choice, choose_policy
from flexref.policy import WEIGHT_SCHEMES, Policy
from flexref.simulator.prediction_error import Foresight, foresee
from flexref.simulator.simulate import RowLengths
from flexref.storage.random_weights import RandomFile, RandomWeights
from flexref.storage.weightfile import WeightFile
from flexref.text.tokenizer import Tokenizer
from flexref.tiers.disk import SpillFile, WeightsOnDisk
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Tier, Traffic
from flexref.tiers.weights import WeightSource, WeightStore, check_homes
from flexref.tiers.weights_plan import WeightsPlan


class Machines(Protocol):
    """Knows the machine that a port runs on."""

    def measured(self, backend: Backend, disk_dir: Path, tell: Callable[[str], None] | None) -> Machine:
        """The machine; it may be measured first, which `tell` hears of."""

    def kept(self, backend: Backend, disk_dir: Path) -> Machine | None:
        """The machine, if it is known without measuring."""


class Engine:
    """A model that is ready to generate. Use it as a context manager, or call `close`.

    It runs one job at a time: a second one is refused with `EngineError`, as is any behind `close`. While it works
    Ctrl-C ends a job where nothing is half done, and the engine is ready for the next one (`interrupts`).
    Without a policy one is chosen from the budgets for each job; weights stay where they are as long as it lets them.
    """

    def __init__(
        self,
        file: WeightFile,
        backend: Backend,
        policy: Policy | None = None,
        budgets: dict[Tier, int | None] | None = None,
        disk_dir: str | Path | None = None,
        keep: Mapping[str, Any] | None = None,
        machines: Machines | None = None,
    ) -> None:
        """`keep` names fields of `Policy` that a chosen one must have so: rows per group, overlap, cache scheme.

        `machines` know what policies are chosen for and what runs are held against.

        Raises `PolicyError` if the policy was made for another scheme than the file's.
        """
        self.file, self.backend, self.policy = file, backend, policy
        if policy is not None:
            self.check_policy(policy)  # before anything is open
        self.keep = dict(keep or {})
        self.budgets = budgets or backend_budgets(backend, None, None)
        self.disk_dir = Path(tempfile.gettempdir() if disk_dir is None else disk_dir)
        self.tokenizer = None if file.tokenizer_json is None else Tokenizer.from_json(file.tokenizer_json, file.path)
        self.on_loaded: Callable[[int], None] | None = None
        self.on_measuring: Callable[[str], None] | None = None
        self.machines = machines
        self._interrupts = Interrupts()
        self._traffic = Traffic()
        self._mover = Mover(backend, self._traffic, self._interrupts.check)
        self.gate = Gate(self._interrupts, lambda: self._interrupts.forced or self._mover.abandoned)
        self._left_alone: list[Any] = []
        self._source = _source_of(file)
        self.arenas = {tier: self._arena(tier) for tier in Tier}
        self._weights: WeightStore | None = None
        self._load_s = 0.0
        for tier, holder, nbytes in engine_needs(backend.caps):
            self.arenas[tier].count(holder, nbytes)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream that is under way, if there is one, give all memory back and end the lanes; once is enough.

        After a job that was broken off while its lanes were at work nothing is waited for: all of it goes with the
        process. Raises `EngineError` if a job is at work just now.
        """
        with self._interrupts:
            if not self.gate.close() or self._mover.abandoned:
                return
            if not self._interrupts.forced:
                self._unload()
            self.backend.close()
            self._source.close()

    def generate(
        self,
        prompts: Sequence[AnyPrompt],
        request: Request | None = None,
        *,
        trace: Trace | None = None,
        on_token: Callable[[StreamedToken], None] | None = None,
        on_logits: OnLogits | None = None,
        on_visit: OnVisit | None = None,
    ) -> Generation:
        """Run all prompts and return outputs in their order; see `stream` for what it raises."""
        self.gate.check()
        job = Job(self, prompts, request or Request(), trace, on_logits, on_visit)
        for token in job.run():
            if on_token is not None:
                on_token(token)
        return job.result()

    def stream(self, prompts: Sequence[AnyPrompt], request: Request | None = None) -> Iterator[StreamedToken]:
        """Tokens as they come, of all rows, in the order in which they are chosen.

        Raises `PromptError` for a prompt that cannot be served, `CapacityError` if the policy does not fit,
        `WeightFileError` naming the dataset if what is read is damaged, `EngineError` if another job is under way: all
        before the first token. The engine is this stream's until it is read to its end, closed or dropped.
        """
        self.gate.check()
        yield from Job(self, prompts, request or Request()).run()

    def score(
        self,
        rows: Sequence[ScoredRow],
        *,
        top: int = 1,
        keep_logits: bool = False,
        listener: Listener | None = None,
    ) -> Scores:
        """The log-probability of every scored token of `rows`, and the `top` most probable ones at its place.

        One pass over the model per block, through the same tiers and groups as generation; no cache outlasts a layer.
        Logits are on the device for a tile of the vocabulary and some tokens at a time; `keep_logits` keeps all of them
        on the host, 4 V bytes for every scored token, which are the caller's and which no budget counts.
        Raises `PromptError` for a row that cannot be scored, and what `stream` raises.
        """
        self.gate.check()
        return ScoringJob(self, rows, top, keep_logits, listener or Listener()).run()

    def weights_for(self, policy: Policy) -> WeightStore:
        """The weights as the policy places them; loaded on the first use, and again when the shares change.

        `EngineError` while a job is under way.
        """
        with self.gate.work():
            return self._weights_for(policy)

    def begin_job(self, policy: Policy) -> WeightStore:
        """Start the account of a job, which has passed the gate; its weights."""
        for arena in self.arenas.values():
            arena.restart_peak()
        weights = self._weights_for(policy)
        self.take_traffic()
        return weights

    def _weights_for(self, policy: Policy) -> WeightStore:
        slots = slots_of(policy)
        plan = WeightsPlan.of(self.file, policy.weights, slots)
        if self._weights is not None and self._weights.plan == plan:
            return self._weights
        self._unload()
        start = time.perf_counter()
        store = WeightStore(plan, self._mover, self._source, self.on_loaded)
        self._weights = store
        try:
            store.allocate(self.arenas)
            store.load(self.arenas)
        except BaseException:
            self._unload()
            raise
        self._load_s = time.perf_counter() - start
        return store

    def plan_for(self, policy: Policy, weights: WeightsPlan, rows: Sequence[Lengths]) -> BlockPlan:
        """The memory of a block; raises what `fitting_block` and `check_homes` raise."""
        check_homes(weights, self._source)
        return fitting_block(weights, self.backend.caps, policy, rows, self.budgets)

    def policy_for(self, rows: Sequence[RowLengths]) -> Policy:
        """The engine's policy, or the one that takes the least time for a job of these rows."""
        if self.policy is not None:
            return self.policy
        return choose_policy(Choice(self.file, self.machine(), self.budgets, rows, self.keep))

    def machine(self) -> Machine:
        """What policies are chosen for; `on_measuring` hears of it if this machine must be measured first.

        Raises `PolicyError` if the engine knows no machines, `EngineError` while a job is under way.
        """
        self.gate.check()
        if self.machines is None:
            raise PolicyError("there is neither a policy nor a machine to choose one for")
        return self.machines.measured(self.backend, self.disk_dir, self.on_measuring)

    def foresee(self, generation: Generation) -> Foresight | None:
        """What the machine was to take for a job, beside what it took; None if no machine is known, or see `foresee`.

        Rows have the lengths that they turned out to have.
        """
        machine = None if self.machines is None else self.machines.kept(self.backend, self.disk_dir)
        if machine is None:
            return None
        rows = [RowLengths(output.prompt_tokens, len(output.token_ids)) for output in generation.outputs]
        return foresee(self.file, machine, generation.stats, rows, self.budgets)

    def take_traffic(self) -> Traffic:
        """The account of copies since the last call."""
        traffic = Traffic(self._traffic.flows, None)
        self._traffic.flows = {}
        return traffic

    def listen(self, trace: Trace | None) -> None:
        """Send finished copies to `trace` from now on."""
        self._traffic.on_done = None if trace is None else trace.on_done

    @property
    def mover(self) -> Mover:
        """The lanes and their account."""
        return self._mover

    @property
    def load_s(self) -> float:
        """Seconds that the last loading of weights took."""
        return self._load_s

    @property
    def direct_disk_reads(self) -> bool:
        """Whether weights are read past the page cache."""
        return self._source.direct

    def check_policy(self, policy: Policy) -> None:
        if policy.weights_scheme is not None and WEIGHT_SCHEMES[policy.weights_scheme] != self.file.layout:
            raise PolicyError(
                f"the policy was made for {policy.weights_scheme} weights, {self.file.path} holds {self.file.stored}"
            )
        if policy.attention_on == "host" and not self.backend.caps.attends_on_host:
            raise PolicyError(f"backend {self.backend.name} cannot compute attention on the host")

    def _arena(self, tier: Tier) -> Arena:
        budget = self.budgets[tier]
        if tier is Tier.DISK:
            return Arena(
                tier, budget, lambda nbytes: SpillFile(self.disk_dir, nbytes), self._releasing(SpillFile.close)
            )
        name = tier.value
        return Arena(
            tier, budget, lambda nbytes: self.backend.allocate(name, nbytes), self._releasing(self.backend.release)
        )

    def _releasing(self, release: Callable[[Any], None]) -> Callable[[Any], None]:
        """Gives places back, but none that a lane may still write to."""
        return lambda place: self._left_alone.append(place) if self._mover.abandoned else release(place)

    def _unload(self) -> None:
        if self._weights is not None:
            self._weights.release(self.arenas)
            self._weights = None


def _source_of(file: WeightFile) -> WeightSource:
    """Where the weights come from: random ones are filled in place."""
    return RandomWeights(file) if isinstance(file, RandomFile) else WeightsOnDisk(file.path)
