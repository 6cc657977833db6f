"""What was predicted beside what was measured, and the term that missed; it measures nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexref.block.rows import RowLengths
from flexref.engine.results import Stats
from flexref.machine.machine import Machine
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import simulate
from flexref.storage.weightfile import WeightFile
from flexref.units import Tier

TOLD_FROM = 0.2
"""A phase whose prediction is further off than this share of what was measured is told to the user."""

TOLD_FROM_S = 1.0
"""Of a phase that neither was predicted to take so long nor took so long nothing is told: it is over too soon for
anybody to have waited for it, and anything else that ran in that moment may have been the reason."""

HARDLY = 0.1
"""What took less than this share of its prediction is so many times as fast; what took more is shorter by a share."""

DIFFERENT_BLOCKS_MOST = 32
"""Bounds the blocks of different lengths that are simulated after a run: each takes about a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A phase that was predicted badly, and the term whose seconds differ most."""

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
    """What something took beside its prediction, in words: `twice as long`, `30% shorter`."""
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
    """The prediction of a job, with the lengths that its rows turned out to have, and what was measured."""

    machine: str
    prediction: Prediction
    stats: Stats
    spread: float = 0.0
    """The share of their median over which repeats spread when the machine was measured: no prediction is nearer."""

    def errors(self) -> dict[str, float]:
        """How far off each phase is, as a share of what was measured: 0.1 is a tenth too slow."""
        prediction, stats = self.prediction, self.stats
        phases = {
            "prefill": (prediction.prefill_s, stats.prefill_s),
            "decode": (prediction.decode_s, stats.decode_s),
            "both": (prediction.prefill_s + prediction.decode_s, stats.prefill_s + stats.decode_s),
        }
        return {phase: told / took - 1 for phase, (told, took) in phases.items() if took}

    def misses(self) -> list[Miss]:
        """The phases that are further off than `TOLD_FROM` and than the machine's own spread, and not too short."""
        errors, prediction, stats = self.errors(), self.prediction, self.stats
        seconds = {
            "prefill": (prediction.prefill_s, stats.prefill_s),
            "decode": (prediction.decode_s, stats.decode_s),
        }
        term, told_s, took_s = self._worst_term()
        return [
            Miss(phase, both[0], both[1], term, told_s, took_s)
            for phase, both in seconds.items()
            if phase in errors and abs(errors[phase]) > max(TOLD_FROM, self.spread) and max(both) >= TOLD_FROM_S
        ]

    def _worst_term(self) -> tuple[str, float, float]:
        """(term, predicted, measured) seconds of the link whose copies differ most; or the operators, where the links
        explain less than half of what is missing."""
        told, took = (_by_term(table) for table in (self.prediction.link_s, self.stats.link_s))
        terms = {name: (told.get(name, 0.0), took.get(name, 0.0)) for name in {*told, *took}}
        whole = (
            self.prediction.prefill_s + self.prediction.decode_s,
            self.stats.prefill_s + self.stats.decode_s,
        )
        missing = abs(whole[0] - whole[1])
        if terms:
            worst = max(sorted(terms), key=lambda name: abs(terms[name][0] - terms[name][1]))
            if abs(terms[worst][0] - terms[worst][1]) >= missing / 2:
                return (worst, *terms[worst])
        linked = tuple(max((pair[side] for pair in terms.values()), default=0.0) for side in (0, 1))
        return ("operators and the host's own work", whole[0] - linked[0], whole[1] - linked[1])

    def to_json(self) -> dict[str, Any]:
        """The prediction, how far off it was, and what missed; fit for `json.dumps`."""
        return {
            **self.prediction.to_json(),
            "machine": self.machine,
            "errors": self.errors(),
            "spread": self.spread,
            "missed": [str(miss) for miss in self.misses()],
        }


def _by_term(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Seconds by link and kind, the names joined."""
    return {f"{link} of {kind}": seconds for link, kinds in table.items() for kind, seconds in kinds.items() if seconds}


def prediction_error(
    file: WeightFile, machine: Machine, stats: Stats, rows: Sequence[RowLengths], budgets: Mapping[Tier, int | None]
) -> PredictionError | None:
    """What `machine` would have taken for the job that `stats` is the account of, its rows' lengths given in order.

    None if its blocks are of more different lengths than are worth simulating.
    """
    size = stats.policy.rows_per_block
    blocks = {tuple(rows[first : first + size]) for first in range(0, len(rows), size)}
    if len(blocks) > DIFFERENT_BLOCKS_MOST:
        return None
    spread = 0.0 if machine.quality is None else machine.quality.spread
    return PredictionError(machine.name, simulate(file, machine, stats.policy, rows, budgets), stats, spread)
