"""Compares a benchmark with an earlier one of the same job on the same machine; it times nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from flexref.bench.suites import BESIDE, Arguments
from flexref.errors import BaselineError, PolicyError
from flexref.files import LARGEST_JSON_BYTES, as_text, read_bytes
from flexref.json_types.parsing import as_json
from flexref.json_types.values import shown
from flexref.units import is_finite

FIGURES = ("prefill_s", "decode_s", "decode_step_s", "tokens_per_s")
"""The figures of every run that are compared; of the last, more is better."""

HARDWARE = ("cpu", "cpu_cores", "gpu", "link_gb_per_s")
"""What must be the same of the machine. Memory may differ a little from one start to the next."""

STORED = ("model", "weights_scheme", "weights_dtype", "lengths")
"""What must be the same of the weights, and of rows that differ."""


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and now: medians over the runs, their ratio, and between what the ratios of single runs lie.

    `least` and `most` are None where either benchmark has one run, which says nothing of its spread.
    """

    figure: str
    before: float
    now: float
    least: float | None
    most: float | None

    @property
    def ratio(self) -> float:
        """Now over before."""
        return self.now / self.before

    @property
    def verdict(self) -> str:
        """`faster`, `slower`, or `no change` where the ratios of single runs lie on both sides of 1; else `unknown`."""
        if self.least is None or self.most is None:
            return "unknown"
        if self.least <= 1 <= self.most:
            return "no change"
        return "faster" if (self.ratio > 1) == (self.figure == "tokens_per_s") else "slower"

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {**asdict(self), "ratio": self.ratio, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class BenchComparison:
    """A benchmark beside its baseline. `differs`: (before, now) of versions and of the policy's fields, by name."""

    where: str
    changes: Sequence[Change]
    differs: Mapping[str, tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for `json.dumps`."""
        figures = {change.figure: change.to_json() for change in self.changes}
        differs = {name: list(both) for name, both in self.differs.items()}
        return {"where": self.where, "figures": figures, "differs": differs}


@dataclass(frozen=True, slots=True)
class Baseline:
    """One line of an earlier `flexref bench --json`, and `where` it stands."""

    where: str
    arguments: Arguments
    values: Mapping[str, Any]

    def check(self, about: Mapping[str, Any]) -> None:
        """`BaselineError` unless weights and machine are those of the benchmark to come: see `Benchmark.about`."""
        pairs = {name: (self.values.get(name), about.get(name)) for name in STORED}
        pairs |= {name: (self.values["machine"].get(name), about["machine"][name]) for name in HARDWARE}
        for name, (before, now) in pairs.items():
            if before != now:
                raise BaselineError(f"{self.where}: {name} was {shown(before)}, is {shown(now)}: nothing to compare")

    def compare(self, report: Mapping[str, Any]) -> BenchComparison:
        """A benchmark, as `Report.to_json` gives it, with at least one run, beside this one."""
        changes = [change for name in FIGURES if (change := _change(name, self.values["runs"], report["runs"]))]
        before, now = (settings_of(values) for values in (self.values, report))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        differs = {name: (str(before.get(name, "none")), str(now.get(name, "none"))) for name in names}
        return BenchComparison(self.where, changes, differs)


def read_baselines(path: str) -> list[Baseline]:
    """Every benchmark of a file that `flexref bench` has written as JSON lines, or as a list.

    Raises `StorageError` if it cannot be read; `BaselineError` names the line, or the entry, that is no benchmark that
    ended.
    """
    text = as_text(read_bytes(path, most_bytes=LARGEST_JSON_BYTES), path, BaselineError)
    if text.lstrip().startswith("["):
        entries = as_json(text, path, BaselineError)
        if not entries:
            raise BaselineError(f"{path}: holds no benchmark")
        return [_baseline(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, start=1)]
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise BaselineError(f"{path}: holds no benchmark")
    return [baseline_in(where, line) for where, line in lines]


def baseline_of(baselines: Sequence[Baseline], arguments: Arguments) -> Baseline:
    """The last baseline of the job that `arguments` describe; `BaselineError` says how the most similar one differs."""
    found = [(_different(one.arguments, arguments), one) for one in baselines]
    differing, closest = min(reversed(found), key=lambda pair: len(pair[0]))
    if differing:
        name = differing[0]
        before, now = (shown(getattr(one, name)) for one in (closest.arguments, arguments))
        raise BaselineError(f"{closest.where}: {name.replace('_', '-')} was {before}, is {now}: another job")
    return closest


def _different(one: Arguments, other: Arguments) -> list[str]:
    """Fields that differ; another number of runs, for example, is no other job."""
    names = [entry.name for entry in fields(Arguments) if entry.name not in BESIDE]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def baseline_in(where: str, text: str) -> Baseline:
    """The benchmark that `text` is in JSON; `BaselineError` if it is none."""
    return _baseline(where, as_json(text, where, BaselineError))


def _baseline(where: str, values: Any) -> Baseline:
    """The benchmark in a line; `BaselineError` if it is none."""
    if not isinstance(values, dict):
        raise BaselineError(f"{where}: is no benchmark")
    runs = values.get("runs")
    if values.get("cut_short") is not None or not isinstance(runs, list) or not runs:
        raise BaselineError(f"{where}: that benchmark did not end: it has no figures")
    for name in ("arguments", "machine", "versions", "policy"):
        if not isinstance(values.get(name), dict):
            raise BaselineError(f"{where}: is no benchmark: lacks the object {name!r}")
    for run in runs:
        for name in FIGURES:
            value = run.get(name, 0) if isinstance(run, dict) else 0
            if value is not None and not (is_finite(value) and value > 0):
                raise BaselineError(f"{where}: {name} of a run must be a finite number above 0, found {shown(value)}")
    try:
        return Baseline(where, Arguments.from_mapping(values["arguments"], where), values)
    except PolicyError as error:
        raise BaselineError(str(error)) from error


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, and the fields of the policy: what may differ where benchmarks are compared."""
    return {**values["versions"], **{f"policy's {name}": value for name, value in values["policy"].items()}}


def _change(name: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Change | None:
    """The change of a figure; None where a job has none (a decode step, where one token is generated)."""
    olds, news = [run[name] for run in before], [run[name] for run in now]
    if None in (*olds, *news):
        return None
    spread = (min(news) / max(olds), max(news) / min(olds)) if min(len(olds), len(news)) > 1 else (None, None)
    return Change(name, median(olds), median(news), *spread)
