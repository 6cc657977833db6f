"""What a benchmark has found, by name: figures of its runs, their floors, and where one is none; it times nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from flexref.bench.breakdown import Breakdown
from flexref.bench.floor import BeatenFloor, PhaseFloor, beaten_floors, decode_link_bytes
from flexref.bench.rates import Rates
from flexref.bench.repeats import MeanInterval, interval_of
from flexref.bench.suites import Arguments
from flexref.bench.workload import Workload
from flexref.engine.results import Stats
from flexref.engine.wall import WholeTime
from flexref.policy import Policy
from flexref.simulator.prediction_error import PredictionError
from flexref.storage.random_weights import RandomFile
from flexref.storage.weightfile import WeightFile

ACCOUNT = (
    *("policy", "row_invariant", "rows", "blocks", "rows_admitted", "rows_retired", "occupancy", "prompt_tokens"),
    *("shared_prefix_tokens", "shared_prefix_link_bytes"),
    *("generated_tokens", "load_s", "link_bytes", "prefill_link_bytes"),
    *("peak_bytes", "budget_bytes", "placement", "tier_bytes"),
)
"""What a report repeats of the last run's account: it is the same in every run."""

PHASES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: the account of every run that ended, the floors, and the rates that those are computed from.

    `cut_short` says what was interrupted, if anything was: no figure contains any of it.
    """

    arguments: Arguments
    file: WeightFile
    workload: Workload
    rates: Rates
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    runs: tuple[Stats, ...]
    floors: tuple[PhaseFloor, ...] | None
    """Of prefill and decode; of both together where rows differ. None without a run."""
    prediction_error: PredictionError | None
    cut_short: str | None
    whole: WholeTime
    """From the beginning of the benchmark until its last run has ended."""
    breakdown: Breakdown | None = None
    """What prefill and decode step are made of; None if nobody asked."""

    @property
    def prefill_s(self) -> float:
        """Median over the runs."""
        return median(run.prefill_s for run in self.runs)

    @property
    def decode_s(self) -> float:
        """Median over the runs."""
        return median(run.decode_s for run in self.runs)

    @property
    def steps(self) -> int:
        """Decode passes of a run, each of which gives one token to every row of a block; 0 if rows differ."""
        return steps_of(self.workload, self.runs[0].policy)

    @property
    def interval(self) -> MeanInterval | None:
        """Between what the mean of tokens/s lies; None after one run."""
        return interval_of([self.workload.generated_tokens / (run.prefill_s + run.decode_s) for run in self.runs])

    def figures(self, prefill_s: float, decode_s: float) -> dict[str, float | None]:
        """The figures that follow from the seconds of the two phases."""
        return {
            "prefill_s": prefill_s,
            "decode_s": decode_s,
            "decode_step_s": decode_s / self.steps if self.steps else None,
            "tokens_per_s": self.workload.generated_tokens / (prefill_s + decode_s),
            "read_tokens_per_s": self.runs[-1].prompt_tokens / (prefill_s + decode_s),
        }

    def beaten(self) -> list[BeatenFloor]:
        """Where the fastest run of a phase beat its floor, and by which rates: such a floor is none."""
        assert self.floors is not None
        if len(self.floors) < len(PHASES):
            phases = [("prefill and decode", [run.prefill_s + run.decode_s for run in self.runs])]
        else:
            phases = [(phase, [getattr(run, f"{phase}_s") for run in self.runs]) for phase in PHASES]
        return [
            beaten
            for (phase, seconds), floor in zip(phases, self.floors, strict=True)
            for beaten in beaten_floors(phase, floor, min(seconds), self.rates)
        ]

    def phase_floors(self) -> list[float | None]:
        """Seconds of every floor, None where a run beat it: it is no bound then."""
        assert self.floors is not None
        names, beaten = (PHASES if len(self.floors) > 1 else ("prefill and decode",)), self.beaten()
        return [
            None if any(one.phase == name for one in beaten) else floor.seconds
            for name, floor in zip(names, self.floors, strict=True)
        ]

    def floor_figures(self) -> dict[str, Any]:
        """The floors, what sets them, and the ratio of the median run to them; None for what this job does not have,
        and for a floor that a run beat.
        """
        assert self.floors is not None
        least = self.phase_floors()
        floor_s = None if None in least else sum(seconds for seconds in least if seconds is not None)
        ratio = None if floor_s is None else (self.prefill_s + self.decode_s) / floor_s
        alike = len(self.floors) == len(PHASES)
        figures: dict[str, Any] = {"floor_s": floor_s, "floor_ratio": ratio}
        figures["floor_terms_s"] = None if alike else dict(self.floors[0].terms_s)
        for number, phase in enumerate(PHASES):
            figures[f"{phase}_floor_s"] = least[number] if alike else None
            figures[f"{phase}_floor_terms_s"] = dict(self.floors[number].terms_s) if alike else None
        decode_s = least[-1]
        figures["decode_step_floor_s"] = decode_s / self.steps if self.steps and decode_s is not None else None
        figures["floors_beaten"] = [asdict(one) for one in self.beaten()]
        return figures

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`; without a run that ended there are no figures."""
        about = {
            "arguments": self.arguments.to_json(),
            "model": self.file.spec.name,
            "weights": "random" if isinstance(self.file, RandomFile) else self.file.path,
            "weights_scheme": self.file.scheme,
            "weights_dtype": self.file.dtype,
            "lengths": self.workload.lengths_json(),
            "cut_short": self.cut_short,
            "rates": asdict(self.rates),
            "versions": self.versions,
            "machine": self.machine,
        }
        runs = [
            {**self.figures(run.prefill_s, run.decode_s), "wall_s": run.wall_s, "lane_busy": run.lane_busy}
            for run in self.runs
        ]
        if not self.runs:
            return {**about, "runs": runs}
        last = self.runs[-1].to_json()
        account = {name: last[name] for name in ACCOUNT}
        account["decode_link_bytes"] = decode_link_bytes(self.runs[-1])
        account["allocate_s"] = median(run.allocate_s for run in self.runs)
        figures: dict[str, Any] = {**self.figures(self.prefill_s, self.decode_s), **self.floor_figures()}
        interval = self.interval
        figures["tokens_per_s_interval"] = None if interval is None else asdict(interval)
        predicted = None if self.prediction_error is None else self.prediction_error.to_json()
        account |= asdict(self.whole)
        account["breakdown"] = None if self.breakdown is None else asdict(self.breakdown)
        return {**figures, **account, "predicted": predicted, **about, "runs": runs}


def steps_of(workload: Workload, policy: Policy) -> int:
    """Decode passes of a run, each of which gives one token to every row of a block; 0 if rows differ."""
    row = workload.row
    return 0 if row is None else workload.rounds(policy.rows_per_block) * (row.new_tokens - 1)
