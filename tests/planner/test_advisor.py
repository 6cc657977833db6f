"""Who settles the policies of jobs: a machine is measured where there is something to choose, and nowhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend

from flexref.block.rows import RowLengths
from flexref.engine.events import Notice
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import PolicyError
from flexref.loading import advisor, load, open_engine
from flexref.machine.machine import Machine
from flexref.machine.names import CACHE_VARIABLE
from flexref.machine.plain import plain_machine
from flexref.policy import Policy
from flexref.profile import kept_machines
from flexref.profile.measure import port_of

MIB = 1 << 20


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ports with which this machine, of which nothing is kept, was measured since."""
    asked: list[str] = []

    def measure(backend: Any, disk_dir: Any, **_: Any) -> Machine:
        asked.append(backend.name)
        return plain_machine().changed(port=port_of(backend, False))

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    defaults = {**kept_machines.measured_machine.__kwdefaults__, "measure": measure}
    monkeypatch.setattr(kept_machines.measured_machine, "__kwdefaults__", defaults)
    return asked


def test_nothing_is_measured_for_a_job_that_fits_on_the_device(measured: list[str]) -> None:
    said: list[Any] = []
    with load("demo", on_event=said.append) as engine:
        policy = engine.generate(["The king"], Request(2)).stats.policy
        scored = engine.score([ScoredRow((5, 6, 7, 8), 2)]).stats.policy
    assert measured == []
    assert [event for event in said if isinstance(event, Notice)] == []
    for chosen in (policy, scored):
        assert chosen.weights.device == chosen.cache.device == chosen.activations.device == 1
        assert (chosen.rows_per_group, chosen.groups_per_block) == (1, 1)


def test_a_job_that_does_not_fit_there_has_the_machine_measured_once(measured: list[str]) -> None:
    with load("demo", device_mem_gib=16 * MIB / (1 << 30)) as engine:
        stats = engine.generate(["The king"], Request(2)).stats
    assert measured == ["numpy"]
    assert stats.policy.weights.device < 1


def test_a_machine_that_is_named_is_asked_though_all_fits(measured: list[str]) -> None:
    elsewhere = plain_machine().changed(port=replace(plain_machine().port, name="abacus"))
    with (
        load("demo", machine=elsewhere) as engine,
        pytest.raises(PolicyError, match="was measured with port abacus, not numpy"),
    ):
        engine.generate(["The king"], Request(2))
    assert measured == []


@pytest.mark.parametrize("policy", [None, Policy()])
def test_a_machine_of_another_port_is_refused_before_the_first_token(
    measured: list[str], policy: Policy | None
) -> None:
    elsewhere = plain_machine().changed(port=replace(plain_machine().port, name="abacus"))
    seen: list[Any] = []
    with load("demo", machine=elsewhere, policy=policy) as engine:
        with pytest.raises(PolicyError, match="was measured with port abacus, not numpy"):
            engine.generate(["The king"], Request(2), on_token=seen.append)
        assert seen == []


def test_a_prediction_that_cannot_be_made_is_told_and_costs_no_outputs(
    measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    lacking = plain_machine().changed(operators={})
    settling = advisor(Policy(), lacking)
    with open_engine("demo", settling) as engine:
        generation = engine.generate(["The king"], Request(2))
        assert settling.judge(engine.session, generation) is None
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "what the job was to take on plain cannot be predicted: machine 'plain' has no operator 'gather'"
    ]


SMALL = {"device_mem_gib": 20 * MIB / (1 << 30)}
"""Too little for all of a job: a machine is asked for."""

ROWS, SHAPE = [RowLengths(400, 8)] * 40, {"rows_per_group": 2, "groups_per_block": 8}


class Lacking(NumpyBackend):
    """A port that would need more to attend on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = replace(self.caps, attends_on_host=False, lacks_on_host="it needs more")


def test_attention_on_the_host_is_not_chosen_for_a_port_that_lacks_it_whatever_its_machine_says(
    measured: list[str],
) -> None:
    """A machine of nominal figures is that of a port with all that it can have."""
    machine = plain_machine(link_per_s=1e6).changed(port=port_of(NumpyBackend(), False))
    found = []
    for port in (NumpyBackend(), Lacking()):
        with load("demo", machine=machine, keep=SHAPE, backend=port, **SMALL) as engine:
            found.append(engine.session.settled(ROWS).attention_on)
    assert found == ["host", "device"]
    with (
        load("demo", keep={"attention_on": "host"}, backend=Lacking(), **SMALL) as engine,
        pytest.raises(PolicyError, match="cannot compute attention on the host: it needs more"),
    ):
        engine.session.settled(ROWS)
    assert measured == [], "what is refused in any case needs no machine"


@pytest.mark.parametrize(
    ("keep", "place"), [({}, "device"), ({"row_invariant": False}, "host"), ({"attention_on": "host"}, "host")]
)
def test_rows_with_bits_of_their_own_attend_on_a_host_that_rounds_otherwise_only_if_it_is_asked_for(
    keep: dict[str, Any], place: str
) -> None:
    port = NumpyBackend()
    port.caps = replace(port.caps, one_memory=False)
    machine = plain_machine(link_per_s=1e6).changed(port=port_of(port, False))
    with load("demo", machine=machine, keep={**SHAPE, **keep}, backend=port, **SMALL) as engine:
        assert engine.session.settled(ROWS).attention_on == place


def test_what_a_machine_lacks_is_said_and_not_taken_for_a_lack_of_memory(measured: list[str]) -> None:
    """Else all would be left on disk."""
    port = NumpyBackend()
    machine = plain_machine().changed(port=replace(port_of(port, False), attends_on_host=False))
    asked: list[tuple[Machine, dict[str, str], str]] = [
        (machine, {"attention_on": "host"}, "'plain' was measured without attention on the host"),
        (machine.changed(operators={}), {}, "machine 'plain' has no operator"),
    ]
    for lacking, keep, said in asked:
        with (
            load("demo", machine=lacking, keep={**SHAPE, **keep}, **SMALL) as engine,
            pytest.raises(PolicyError, match=said),
        ):
            engine.session.settled(ROWS)
