"""Compares a prediction with what was measured, and names the term that is most wrong; it measures nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexref.block.counted_rows import kinds_of
from flexref.block.rows import RowLengths
from flexref.engine.results import Stats
from flexref.machine.machine import Machine
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import simulate
from flexref.storage.weightfile import WeightFile
from flexref.units import Tier

TOLD_FROM = 0.2
"""The user is told of a phase only if its prediction is off by more than this share of the measured time."""

TOLD_FROM_S = 1.0
"""The user is told of a phase only if it took, or was predicted to take, at least a second. Nobody waits for a shorter
one, and anything else that ran at that moment may have slowed it."""

HARDLY = 0.1
"""Less than a tenth of the prediction is told as `12 times as fast`, more as `30% shorter`."""

ROWS_MOST = 1 << 14
"""A job of more rows that differ is not compared with a prediction: each of them takes about a millisecond."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A phase that was predicted badly, and the part of it (`term`) whose seconds differ most."""

    phase: str
    predicted_s: float
    measured_s: float
    term: str
    term_predicted_s: float
    term_measured_s: float

    def __str__(self) -> str:
        return (
            f"{self.phase}: predicted {self.predicted_s:.3g} s, took {self.measured_s:.3g} s: "
            f"{compared(self.predicted_s, self.measured_s)}; most of it in {self.term}: "
            f"predicted {self.term_predicted_s:.3g} s, took {self.term_measured_s:.3g} s"
        )


def compared(predicted_s: float, measured_s: float) -> str:
    """The measured time compared with the predicted one, in words: `twice as long`, `30% shorter`."""
    if not predicted_s or not measured_s:
        return "more than nothing" if measured_s else "nothing at all"
    ratio = measured_s / predicted_s
    for words, exact in (("twice as long", 2.0), ("half as long", 0.5)):
        if abs(ratio / exact - 1) < 0.025:
            return words
    if ratio < HARDLY:
        return f"{1 / ratio:.0f} times as fast"
    if ratio < 2:
        return f"{ratio - 1:.0%} longer" if ratio >= 1 else f"{1 - ratio:.0%} shorter"
    return f"{ratio:.2g} times as long" if ratio < 100 else f"{ratio:.0f} times as long"


@dataclass(frozen=True, slots=True)
class PredictionError:
    """The prediction of a job, made with the lengths that its rows really had, and what was measured."""

    machine: str
    prediction: Prediction
    stats: Stats
    spread: float = 0.0
    """How far repeats spread when the machine was measured, as a share of their median: a prediction is no better."""
    machine_busy: bool = False
    """Whether other work ran while the machine was measured: then a job may well be faster than predicted."""

    def errors(self) -> dict[str, float]:
        """The error of each phase and of both, predicted / measured - 1: 0.1 if the prediction was a tenth too long."""
        return {phase: told / took - 1 for phase, (told, took) in self._seconds().items() if took}

    def misses(self) -> list[Miss]:
        """The phases of which the user is told: off by more than `TOLD_FROM` and the spread, and at least a second."""
        errors, seconds = self.errors(), self._seconds()
        term, told_s, took_s = self._worst_term()
        return [
            Miss(phase, *seconds[phase], term, told_s, took_s)
            for phase in ("prefill", "decode")
            if phase in errors and abs(errors[phase]) > max(TOLD_FROM, self.spread)
            if max(seconds[phase]) >= TOLD_FROM_S and not (self.machine_busy and errors[phase] > 0)
        ]

    def _seconds(self) -> dict[str, tuple[float, float]]:
        """(predicted, measured) seconds of each phase and of both."""
        prediction, stats = self.prediction, self.stats
        return {
            "prefill": (prediction.prefill_s, stats.prefill_s),
            "decode": (prediction.decode_s, stats.decode_s),
            "both": (prediction.prefill_s + prediction.decode_s, stats.prefill_s + stats.decode_s),
        }

    def _worst_term(self) -> tuple[str, float, float]:
        """(term, predicted seconds, measured seconds) of the link whose copies differ most.

        Where that explains less than half of the difference, the term is all that links do not explain.
        """
        told, took = (_by_term(table) for table in (self.prediction.link_s, self.stats.link_s))
        terms = {name: (told.get(name, 0.0), took.get(name, 0.0)) for name in {*told, *took}}
        whole = self._seconds()["both"]
        missing = abs(whole[0] - whole[1])
        if terms:
            worst = max(sorted(terms), key=lambda name: abs(terms[name][0] - terms[name][1]))
            if abs(terms[worst][0] - terms[worst][1]) >= missing / 2:
                return (worst, *terms[worst])
        linked = tuple(max((pair[side] for pair in terms.values()), default=0.0) for side in (0, 1))
        return ("operators and the host's own work", whole[0] - linked[0], whole[1] - linked[1])

    def to_json(self) -> dict[str, Any]:
        """The prediction, its errors, and the phases that the user is told of, as an object for `json.dumps`."""
        return {
            **self.prediction.to_json(),
            "machine": self.machine,
            "errors": self.errors(),
            "spread": self.spread,
            "machine_busy": self.machine_busy,
            "missed": [str(miss) for miss in self.misses()],
        }


def _by_term(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"link of kind": seconds}, without those that are 0."""
    return {f"{link} of {kind}": seconds for link, kinds in table.items() for kind, seconds in kinds.items() if seconds}


def prediction_error(
    file: WeightFile, machine: Machine, stats: Stats, rows: Sequence[RowLengths], budgets: Mapping[Tier, int | None]
) -> PredictionError | None:
    """Predict, for `machine`, the job that has just run, and compare.

    `stats`: the job's account; `rows`: the lengths that its rows had, in order. None where there are more
    than `ROWS_MOST` that differ. Raises `CapacityError` if the job does not fit `budgets`.
    """
    if len(rows) > ROWS_MOST and len(kinds_of(rows)) > 1:
        return None
    prediction = simulate(file, machine, stats.policy, rows, budgets)
    if machine.quality is None:
        return PredictionError(machine.name, prediction, stats)
    return PredictionError(machine.name, prediction, stats, machine.quality.spread, bool(machine.quality.busy))
