"""Every operator of a port is timed beside the port's own limits; figures are not judged, nor is a wrong port timed."""

from collections.abc import Callable

import pytest
from flexref_numpy import NumpyBackend

from flexref.profile.meter import Meter
from flexref.profile.sizes import Sizes
from flexref.testing.conformance import rates
from flexref.testing.conformance.contract_run import Conformance, conform
from flexref.testing.conformance.watch import METHODS

Install = Callable[..., None]


class Noted:
    """Stands in for the box of a process."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def calls(self, method: str) -> None:
        self.called.append(method)


def test_all_operators_are_timed_on_data_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOST_WIDTH": 128,
        "COPIED_BYTES": 1 << 20,
        "VOCABULARY": 500,
        "PAST": 20,
        "PROMPT": 16,
    }.items():
        monkeypatch.setattr(rates, name, value)
    port, box = NumpyBackend(), Noted()
    with Meter(port, Sizes.tiny()) as meter:
        found = rates._rates(meter, box)  # type: ignore[arg-type]
    port.close()
    operators = list(METHODS)[list(METHODS).index("gather") : list(METHODS).index("sample") + 1]
    assert {rate.method for rate in found.operators} == set(operators) - {"cache_rows", "segments"}
    assert set(box.called) == {rate.method for rate in found.operators}
    assert found.memory_bytes_per_s > 0
    assert found.flops_per_s > 0
    for rate in found.operators:
        moving_s, computing_s = rate.bytes / found.memory_bytes_per_s, rate.flops / found.flops_per_s
        assert rate.seconds > 0
        assert rate.least_s == max(moving_s, computing_s)
        assert rate.limit == ("memory" if moving_s >= computing_s else "compute")


def test_a_port_that_fails_a_clause_is_not_timed(planted: Install) -> None:
    planted(wrong="test_wrong_memory_and_lanes:ReportsNoFreeMemory")
    result = conform(Conformance("wrong", ("free_memory_is_reported",), examples=2, timed=True))
    assert result.rates is None
    assert result.not_timed == "operators are not timed while a clause fails: free_memory_is_reported"


def test_a_port_that_fails_while_it_is_timed_is_told(planted: Install) -> None:
    source = """
    from flexref_numpy import NumpyBackend
    class Wrong(NumpyBackend):
        def assign(self, target, source):
            raise ValueError("not today")
    """
    planted("\n".join(line[4:] for line in source.splitlines()), wrong="planted_port:Wrong")
    result = conform(Conformance("wrong", ("it_describes_itself",), examples=2, timed=True))
    assert (result.rates, result.not_timed) == (None, "timing operators: ValueError: not today")
    assert list(result.faults) == []
