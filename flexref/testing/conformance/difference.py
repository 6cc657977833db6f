"""What has changed between two conformance results, of one port or of two; it runs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flexref.testing.conformance.results import NOT_NEEDED, PASSED, ClauseResult, ConformanceResult, MethodResult

MUCH = 2.0
"""A share of a bound that grew or fell by this factor has changed: smaller changes come with other examples."""

ABSENT = "not tried"


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A clause whose status differs: `worse` if it passed before, or was not there, and fails now."""

    clause: str
    before: str
    now: str
    method: str | None
    error: str | None

    @property
    def worse(self) -> bool:
        """Whether it is a step back."""
        fine = (PASSED, NOT_NEEDED, ABSENT)
        return self.now not in fine and self.before in fine


@dataclass(frozen=True, slots=True)
class ShareChange:
    """A method whose worst error, as a share of its bound, differs by a factor of `MUCH` or more."""

    method: str
    before: float
    now: float


@dataclass(frozen=True, slots=True)
class ResultDifference:
    """All that differs between two results."""

    statuses: Sequence[StatusChange]
    shares: Sequence[ShareChange]
    versions: Mapping[str, tuple[str, str]]

    @property
    def worse(self) -> list[StatusChange]:
        """The clauses that are a step back."""
        return [change for change in self.statuses if change.worse]

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for `json.dumps`."""
        statuses = [{**asdict(change), "worse": change.worse} for change in self.statuses]
        shares = [asdict(change) for change in self.shares]
        versions = {name: list(both) for name, both in self.versions.items()}
        return {"clauses": statuses, "worst_shares": shares, "versions": versions, "worse": len(self.worse)}


def difference(before: ConformanceResult, now: ConformanceResult) -> ResultDifference:
    """What has changed from `before` to `now`."""
    first, second = _clauses(before), _clauses(now)
    statuses = []
    for name in dict.fromkeys([*first, *second]):
        old, new = first.get(name), second.get(name)
        was, is_now = (ABSENT if one is None else one.status for one in (old, new))
        if was != is_now:
            blamed, error = (None, None) if new is None else (new.method, new.error)
            statuses.append(StatusChange(name, was, is_now, blamed, error))
    methods = _methods(before)
    shares = []
    for method in now.methods:
        earlier = methods.get(method.method)
        if earlier is not None and _differs(earlier.worst_share, method.worst_share):
            shares.append(ShareChange(method.method, earlier.worst_share or 0.0, method.worst_share or 0.0))
    both = {**before.versions, **now.versions, "flexref": ""}
    versions = {name: (_version(before, name), _version(now, name)) for name in both}
    return ResultDifference(statuses, shares, {name: pair for name, pair in versions.items() if pair[0] != pair[1]})


def _clauses(result: ConformanceResult) -> dict[str, ClauseResult]:
    return {clause.clause: clause for clause in result.clauses}


def _methods(result: ConformanceResult) -> dict[str, MethodResult]:
    return {method.method: method for method in result.methods}


def _version(result: ConformanceResult, name: str) -> str:
    return result.flexref if name == "flexref" else result.versions.get(name, ABSENT)


def _differs(before: float | None, now: float | None) -> bool:
    """Whether both are known, and one is more than `MUCH` times the other."""
    if before is None or now is None:
        return False
    low, high = sorted((before, now))
    return high > MUCH * low
