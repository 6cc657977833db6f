"""Joins kept benchmarks by what was asked for and where they ran, and says which are faster; it times nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from flexref.bench.baseline import FIGURES, HARDWARE, STORED, Baseline, settings_of
from flexref.bench.suites import BESIDE
from flexref.bench.welch import p_value
from flexref.errors import BaselineError

SIGNIFICANT = 0.05
"""Means are told apart where a difference so large would come by chance in fewer of all comparisons."""

DECIDES = "tokens_per_s"
"""The figure whose verdict is that of a benchmark."""


@dataclass(frozen=True, slots=True)
class MeanChange:
    """A figure's mean over the runs before and now; `p_value` as in `welch`."""

    figure: str
    before: float
    now: float
    runs_before: int
    runs_now: int
    p_value: float | None

    @property
    def ratio(self) -> float:
        """Now over before."""
        return self.now / self.before

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `not told apart`."""
        if self.p_value is None or self.p_value >= SIGNIFICANT:
            return "not told apart"
        return "faster" if (self.ratio > 1) == (self.figure == DECIDES) else "slower"

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {**asdict(self), "ratio": self.ratio, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Joined:
    """One benchmark in both; `differs`: (before, now) of versions and of the policy's fields, by name."""

    before: Baseline
    now: Baseline
    changes: Sequence[MeanChange]
    differs: Mapping[str, tuple[str, str]]

    @property
    def verdict(self) -> str:
        """That of tokens/s."""
        return next(change.verdict for change in self.changes if change.figure == DECIDES)

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for `json.dumps`."""
        return {
            "before": self.before.where,
            "now": self.now.where,
            "arguments": self.now.arguments.to_json(),
            "verdict": self.verdict,
            "figures": {change.figure: change.to_json() for change in self.changes},
            "differs": {name: list(both) for name, both in self.differs.items()},
        }


@dataclass(frozen=True, slots=True)
class BenchesCompared:
    """What is in both, in the order of the later; and where that stands which is in one of them alone."""

    joined: Sequence[Joined]
    only_before: Sequence[str]
    only_now: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for `json.dumps`."""
        return {
            "joined": [one.to_json() for one in self.joined],
            "only_before": list(self.only_before),
            "only_now": list(self.only_now),
        }


def compare(before: Sequence[Baseline], now: Sequence[Baseline]) -> BenchesCompared:
    """Join benchmarks of the same arguments (but for those `BESIDE` the job), weights and hardware.

    Of several that are alike in one of them, the last counts. `BaselineError` says how the most similar two differ if
    nothing can be joined.
    """
    earlier, later = ({key_of(one): one for one in some} for some in (before, now))
    joined = [_join(earlier[key], one) for key, one in later.items() if key in earlier]
    if not joined:
        raise BaselineError(_nearest(before, now))
    only_before = [one.where for key, one in earlier.items() if key not in later]
    return BenchesCompared(joined, only_before, [one.where for key, one in later.items() if key not in earlier])


def key_of(one: Baseline) -> tuple[tuple[str, str], ...]:
    """(name, value in JSON) of all that must be the same for two benchmarks to be comparable."""
    asked = {name: value for name, value in one.arguments.to_json().items() if name not in BESIDE}
    stored = {name: one.values.get(name) for name in STORED}
    hardware = {f"machine's {name}": one.values["machine"].get(name) for name in HARDWARE}
    return tuple((name, json.dumps(value, sort_keys=True)) for name, value in {**asked, **stored, **hardware}.items())


def _join(before: Baseline, now: Baseline) -> Joined:
    changes = []
    for name in FIGURES:
        olds, news = ([run[name] for run in one.values["runs"]] for one in (before, now))
        if None not in (*olds, *news):
            found = p_value(olds, news)
            changes.append(MeanChange(name, fmean(olds), fmean(news), len(olds), len(news), found))
    old, new = (settings_of(one.values) for one in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return Joined(
        before, now, changes, {name: (str(old.get(name, "none")), str(new.get(name, "none"))) for name in names}
    )


def _nearest(before: Sequence[Baseline], now: Sequence[Baseline]) -> str:
    """How the two that are most alike differ."""
    pairs = [(old, new) for old in before for new in now]
    apart = [[one for one in zip(key_of(old), key_of(new), strict=True) if one[0] != one[1]] for old, new in pairs]
    nearest = min(range(len(pairs)), key=lambda number: len(apart[number]))
    ((name, was), (_, found)), (old, new) = apart[nearest][0], pairs[nearest]
    return (
        f"no benchmark is in both: {name.replace('_', '-')} was {was} in {old.where}, is {found} in {new.where}; "
        "run the same arguments on the same machine"
    )
