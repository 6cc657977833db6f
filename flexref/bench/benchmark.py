"""Times jobs on an engine, every one whole, and holds the figures against the floor of the machine they ran on."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, cast

from flexref.architecture.published import size_named
from flexref.backend.compiling import compile_time
from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.bench.breakdown import Breakdown
from flexref.bench.disk_rates import spill_rates, weight_extents, weights_rate
from flexref.bench.floor import floors, whole_floors
from flexref.bench.host_rate import host_memory_rate
from flexref.bench.rates import Rates, measure
from flexref.bench.repeats import enough, runs_in_words
from flexref.bench.report import Report, steps_of
from flexref.bench.short_runs import breakdown_of, check_counts, check_same_tokens
from flexref.bench.slow_link import FROM_DEVICE, TO_DEVICE, SlowedMachines, slowed_links
from flexref.bench.suites import Arguments
from flexref.bench.workload import random_prompts, workload_of
from flexref.block.tracing.trace import Trace
from flexref.engine.events import OnEvent, no_listener
from flexref.engine.interrupts import Interrupts
from flexref.engine.request import Request
from flexref.engine.results import Stats
from flexref.engine.wall import Wall, WallPart
from flexref.errors import PolicyError, PromptError
from flexref.loading import advisor, open_engine
from flexref.planner.advisor import Advisor
from flexref.policy import Policy, asked
from flexref.profile.environment import machine, versions
from flexref.simulator.prediction_error import PredictionError
from flexref.storage.names import check_model, resolve
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import WeightFile, open_weight_file
from flexref.text.prompts import Prompt
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import GIGA

WARM_UP_PROMPT, WARM_UP_NEW = 16, 3
"""Tokens of the rows that warm a port up: few, so that it costs no more than the fetches of some passes."""


def weights_of(arguments: Arguments) -> WeightFile:
    """The weight file that `model` names, or the layout of random weights for a size, or for a file's architecture.

    A file wins over a size of the same name. `UnknownName` if there is neither; `PolicyError` if a file's own weights
    are to be quantized.
    """
    spec = None if Path(arguments.model).is_file() else size_named(arguments.model)
    asked, dtype = arguments.quantize_weights, arguments.dtype
    scheme = asked or "none"
    if spec is None:
        check_model(arguments.model)
        file = open_weight_file(resolve(arguments.model))
        if not arguments.random_weights:
            if asked not in (None, file.layout):
                raise PolicyError(
                    f"{file.path} holds {file.stored} weights: convert the model again with --quantize {asked}"
                )
            return file
        spec, dtype = file.spec, file.dtype
        scheme = asked or file.scheme
    return random_file(spec, scheme=scheme, dtype=dtype, seed=arguments.seed)


class Benchmark:
    """One benchmark, ready to run; a context manager. Its policy is settled, and fits, when it is made."""

    def __init__(
        self,
        arguments: Arguments,
        make_backend: Callable[[], Backend] | None = None,
        on_event: OnEvent = no_listener,
        wall: Wall | None = None,
    ) -> None:
        """`make_backend` takes the place of the port that is named; `on_event` hears what `load`'s does. Without a
        `wall` the whole time begins now.

        Raises what `load` raises, `PromptError` if the model has too few positions, and `CapacityError`.
        """
        self.arguments = arguments
        wall = wall or Wall()
        with wall.part(WallPart.LOAD):
            self.file = weights_of(arguments)
        self.workload = workload_of(arguments)
        positions = self.file.spec.positions
        for row in self.workload.rows.kinds:
            if row.prompt_tokens + row.new_tokens - 1 > positions:  # the last one is never read
                raise PromptError(f"{row.prompt_tokens} + {row.new_tokens} tokens: the model has {positions} positions")
        wanted = asked(arguments.to_json())
        self.make_backend = make_backend or (lambda: create(arguments.backend))
        with wall.part(WallPart.MACHINE):
            self._advisor = advisor(wanted.policy, arguments.machine, wanted.keep)
        with wall.part(WallPart.IMPORTS):
            port = self.make_backend()
        if arguments.link_gb_per_s is not None:
            port = self._with_slower_links(port, arguments.link_gb_per_s * GIGA, wall)
        self.engine = open_engine(
            *(self.file, self._advisor),
            backend=port,
            **wanted.budgets,
            on_event=on_event,
            wall=wall,
            graphs=arguments.graphs,
        )
        self.prompts = random_prompts(self.workload, self.file.spec.vocabulary, arguments.seed)
        self.tokens: list[list[int]] | None = None
        """What every run has given after them, once one has ended."""
        self._new_tokens = 0
        """How many the run that is under way has given so far."""
        self._request = Request(self.workload.rows.summary.new_tokens.most, ignore_eos=True)
        try:
            self.policy = self._settle()
        except BaseException:
            self.engine.close()
            raise

    def _with_slower_links(self, port: Backend, bytes_per_s: float, wall: Wall) -> Backend:
        """The port with links of that rate, which is then also what policies are chosen and runs predicted for."""
        try:
            with Interrupts(), wall.part(WallPart.MACHINE):
                rates = measure(port)
            own = {TO_DEVICE: rates.to_device_bytes_per_s, FROM_DEVICE: rates.from_device_bytes_per_s}
            slowed = slowed_links(port, bytes_per_s, own)
        except BaseException:
            port.close()
            raise
        fast = self._advisor
        machines = SlowedMachines(fast.machines, bytes_per_s)
        self._advisor = Advisor(machines, fast.policy, fast.keep, plainly=fast.plainly)
        return cast(Backend, slowed)

    def _machine(self) -> dict[str, Any]:
        """What the runs are on; a link that was slowed makes it another machine."""
        described = machine(self.engine.backend.describe())
        return {**described, "link_gb_per_s": self.arguments.link_gb_per_s}

    def _settle(self) -> Policy:
        """Choose the policy, if none is given, once for all runs; find out before anything else whether it fits."""
        session = self.engine.session
        policy = session.settled(self.workload.rows)
        self._planned = session.planned(policy, self.workload.rows)
        self.workload = self.workload.under(policy)
        return policy

    def __enter__(self) -> "Benchmark":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def about(self) -> dict[str, Any]:
        """The weights that are timed, and on which machine, by the names that `Report.to_json` has for them."""
        file = self.file
        stored = {"model": file.spec.name, "weights_scheme": file.scheme, "weights_dtype": file.dtype}
        return {**stored, "lengths": self.workload.lengths_json(), "machine": self._machine()}

    def how_far(self) -> str:
        """How many new tokens the run that is under way has given, of how many; a run tells of none by itself."""
        return f"{self._new_tokens} of {self.workload.generated_tokens} tokens"

    def run(self, *, trace: Trace | None = None, on_run: Callable[[int], None]) -> Report:
        """Measure the machine, load the weights, and run the job as often as asked; `on_run` is told which comes.
        Raises `RunsDiffer` unless all runs give the same `tokens`, which are still to be checked.

        An interrupt ends it: what has ended by then is reported. `trace`, which costs marks between visits, is
        begun again with every run.
        """
        engine, repeat = self.engine, self.arguments.repeat
        runs: list[Stats] = []
        breakdown: Breakdown | None = None

        def count(_: object) -> None:
            self._new_tokens += 1

        # Its copies have ended when an interrupt acts, and nothing frees their memory before.
        with Interrupts(), engine.session.wall.part(WallPart.MACHINE):
            rates = measure(engine.backend)
        doing = "loading the weights"
        cut_short = None
        try:
            engine.session.rehearsals.of(self._planned, self.policy.row_invariant)
            engine.session.weights_for(self.policy)
            doing = "warming up"
            self._warm_up()
            began = time.perf_counter()
            while not enough(repeat, [run.tokens_per_s for run in runs], time.perf_counter() - began):
                number = len(runs) + 1
                doing, self._new_tokens = f"run {number} of {runs_in_words(repeat)}", 0
                on_run(number)
                if trace is not None:
                    trace.restart()
                generation = engine.generate(
                    self.prompts, self._request, policy=self.policy, trace=trace, on_token=count
                )
                self._take_tokens(number, [output.token_ids for output in generation.outputs])
                runs.append(generation.stats)
            whole = engine.session.wall.since()
            if self.arguments.breakdown and self.workload.row is not None:
                doing = "finding what its seconds are made of"
                breakdown = self._breakdown(runs)
        except KeyboardInterrupt:
            whole = engine.session.wall.since()
            cut_short = f"interrupted in {doing}, after {self.how_far()}"
        rates = self._with_more(rates, runs)
        file, dtype = self.file, engine.backend.caps.compute_dtype
        least = floors if self.workload.row is not None else whole_floors
        both = least(file, self.workload, runs[-1], rates, dtype) if runs else None
        prediction_error = self._judged(runs) if runs else None
        port = engine.backend.describe()
        return Report(
            arguments=self.arguments,
            file=file,
            workload=self.workload,
            rates=rates,
            machine=self._machine(),
            versions=versions(port),
            runs=tuple(runs),
            floors=both,
            prediction_error=prediction_error,
            cut_short=cut_short,
            whole=whole,
            breakdown=breakdown,
        )

    def _take_tokens(self, number: int, tokens: list[list[int]]) -> None:
        """Keep the tokens of run `number`, to be checked; `RunsDiffer` if they are not those of the runs before it.

        So it is if a row has not as many as it was to have: what was left out took no time.
        """
        check_counts(f"run {number}", [row.new_tokens for row in self.workload.rows], tokens)
        check_same_tokens(f"run {number}", tokens if self.tokens is None else self.tokens, tokens)
        self.tokens = tokens

    def _breakdown(self, runs: list[Stats]) -> Breakdown:
        """What the medians of the runs are made of, by short runs more."""
        assert self.tokens is not None
        steps = steps_of(self.workload, self.policy)
        step_s = median(run.decode_s for run in runs) / steps if steps else None
        medians = median(run.prefill_s for run in runs), step_s
        return breakdown_of(self.engine, (self.prompts, self.tokens), self._request, self.policy, medians)

    def _judged(self, runs: list[Stats]) -> PredictionError | None:
        """What the machine was to take, beside the median run; None if no machine is known without measuring."""
        middle = {name: median(getattr(run, name) for run in runs) for name in ("prefill_s", "decode_s")}
        return self._advisor.judge_stats(self.engine.session, replace(runs[-1], **middle), self.workload.rows)

    def _warm_up(self) -> None:
        """One group of short rows through all stages, a few times: kernels are compiled and libraries loaded by it.

        What is compiled ahead beside it, and the pinning of weights, have come to their end, too: a timed run has the
        processors for itself.
        """
        rows = self.prompts[: self.policy.rows_per_group]
        request = replace(self._request, max_new_tokens=WARM_UP_NEW)
        short = [Prompt(token_ids=(row.token_ids or ())[:WARM_UP_PROMPT]) for row in rows]
        self.engine.generate(short, request, policy=self.policy)
        with self.engine.session.wall.part(WallPart.COMPILE):
            compile_time(self.engine.backend).settle()
        pinning_time(self.engine.backend).settle()

    def _with_more(self, rates: Rates, runs: list[Stats]) -> Rates:
        """The rates with those of the disk, and of the host's memory, as far as runs have used them."""
        links = runs[-1].link_bytes if runs else {}
        if any(links.get("host->disk", {}).values()):  # what comes back was written before
            found = spill_rates(self.engine.backend, self.engine.session.disk_dir)
            rates = replace(rates, from_spill_bytes_per_s=found[0], to_spill_bytes_per_s=found[1])
        if links.get("disk->host", {}).get("weights"):
            plan = WeightsPlan.under(self.file, self.policy)
            rate = weights_rate(self.engine.backend, self.file.path, weight_extents(self.file, plan))
            rates = replace(rates, from_disk_bytes_per_s=rate)
        if runs and self.policy.shares_attention:
            rates = replace(rates, host_memory_bytes_per_s=host_memory_rate(self.engine.backend))
        return rates
