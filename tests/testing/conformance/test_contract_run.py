"""The contract on installed ports that are wrong on purpose: each is found, blamed, saved and repeated."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flexref.errors import BackendUnavailable, StorageError, UnknownBackend
from flexref.testing.conformance.cases import read_case
from flexref.testing.conformance.contract_run import Conformance, conform, replay
from flexref.testing.conformance.draws import CaseError
from flexref.testing.conformance.results import ClauseResult, ConformanceError, ConformanceResult

Install = Callable[..., None]

EXAMPLES, LIMIT_S = 25, 60.0

WRONG = [
    ("test_wrong_operators:NibblesSwapped", "linear_is_the_product", "linear"),
    ("test_wrong_operators:ExpandsToHalf", "linear_of_expanded_weights_has_the_same_bits", "expand"),
    ("test_wrong_attention:SeesOneTokenAhead", "attend_is_causal_attention", "attend"),
    ("test_wrong_memory_and_lanes:ReportsNoFreeMemory", "free_memory_is_reported", "free_bytes"),
]
"""A port of tests/meta, a clause that it breaks, and the method to blame."""


def tried(*clauses: str, cases: str | None = None, limit_s: float = LIMIT_S, **more: object) -> ConformanceResult:
    return conform(Conformance("wrong", clauses, (), EXAMPLES, limit_s, cases, **more))  # type: ignore[arg-type]


def only(result: ConformanceResult) -> ClauseResult:
    (clause,) = result.clauses
    return clause


@pytest.mark.parametrize(("port", "clause", "method"), WRONG)
def test_a_wrong_port_is_found_blamed_and_its_case_repeats(
    planted: Install, port: str, clause: str, method: str, tmp_path: Path
) -> None:
    planted(wrong=port, right="flexref_numpy:NumpyBackend")
    result = tried(clause, cases="cases")
    found = only(result)
    assert (found.status, found.method, found.counts) == ("failed", method, True)
    assert {part.method for part in result.methods if part.blamed_by == [clause]} == {method}
    assert found.case_file == f"cases/{clause}.npz"
    case = read_case(found.case_file)
    again = replay("wrong", case, LIMIT_S)
    assert (again.status, again.method, again.error) == ("failed", method, found.error)
    assert replay("right", case, LIMIT_S).status == "passed"


DYING = """
import os, time
from flexref_numpy import NumpyBackend


class Aborts(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        if x.shape[1] > 1:
            os.abort()
        return super().layer_norm(x, w, b, epsilon, out)


class Hangs(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        time.sleep(3600)


class Leaves(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        raise SystemExit(7)


class Interrupts(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        raise KeyboardInterrupt("of its own")


class Prints(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        print("noise")
        return super().layer_norm(x, w, b, epsilon, out)
"""


@pytest.mark.parametrize(
    ("port", "status", "said", "limit_s"),
    [
        ("Aborts", "crashed", "the process died of SIGABRT", LIMIT_S),
        ("Hangs", "hung", "it did not end within 4 s", 4.0),
        ("Leaves", "exited", "the process left with exit code 7", LIMIT_S),
        ("Interrupts", "exited", "the process left with exit code 1: KeyboardInterrupt: of its own", LIMIT_S),
    ],
)
def test_a_port_that_dies_is_a_finding_with_its_input(
    planted: Install, port: str, status: str, said: str, limit_s: float
) -> None:
    planted(DYING, wrong=f"planted_port:{port}")
    result = tried("layer_norm_is_the_norm", cases="cases", limit_s=limit_s)
    clauses = {clause.clause: clause for clause in result.clauses}
    found = clauses["layer_norm_is_the_norm"]
    assert (found.status, found.method) == (status, "layer_norm")
    assert str(found.error).startswith(said)
    assert only(tried("free_memory_is_reported")).status == "passed"
    assert found.case_file is not None
    assert replay("wrong", read_case(found.case_file), limit_s).status == status
    assert next(part.status for part in result.methods if part.method == "layer_norm") == status


def test_what_a_port_prints_reaches_nobodys_output(planted: Install, capfd: pytest.CaptureFixture[str]) -> None:
    planted(DYING, wrong="planted_port:Prints")
    assert only(tried("layer_norm_is_the_norm")).status == "passed"
    assert "noise" not in "".join(capfd.readouterr())


def test_a_known_failure_is_told_and_does_not_count(planted: Install) -> None:
    planted(wrong="test_wrong_operators:NormIsFlat")
    known = {
        name: "mended next week" for name in ("norms_and_activations_have_their_shapes", "free_memory_is_reported")
    }
    result = tried(*known, known=known)
    assert list(result.faults) == []
    assert [clause.clause for clause in result.mended] == ["free_memory_is_reported"]


UNMADE = """
import os
from flexref.errors import BackendUnavailable


class Absent:
    def __init__(self):
        raise BackendUnavailable("no device here")


class Broken:
    def __init__(self):
        raise ValueError("three wheels")


class Aborts:
    def __init__(self):
        os.abort()
"""


@pytest.mark.parametrize(
    ("port", "kind", "said"),
    [
        ("Absent", BackendUnavailable, "no device here"),
        ("Broken", ConformanceError, "its constructor raised ValueError: three wheels"),
        ("Aborts", ConformanceError, "SIGABRT"),
    ],
)
def test_a_port_that_cannot_be_made_is_told_in_a_line(
    planted: Install, port: str, kind: type[Exception], said: str
) -> None:
    planted(UNMADE, wrong=f"planted_port:{port}")
    with pytest.raises(kind, match=said):
        tried("free_memory_is_reported")


def test_an_unknown_port_is_told(planted: Install) -> None:
    planted()
    with pytest.raises(UnknownBackend, match="wrong"):
        tried("free_memory_is_reported")


def test_a_method_that_names_clauses_chooses_those_that_may_call_it() -> None:
    chosen = Conformance("numpy", methods=("sample",)).chosen()
    assert len(chosen) == 7  # one of them is about recordings
    assert "sampling_inverts_the_distribution" in chosen
    attending = Conformance("numpy", methods=("attend",)).chosen()
    assert "attend_is_causal_attention" in attending
    assert "layer_norm_is_the_norm" not in attending


def test_a_case_of_another_version_of_its_clause_is_refused(planted: Install) -> None:
    planted(DYING, wrong="planted_port:Aborts")
    case = read_case(str(only(tried("layer_norm_is_the_norm", cases="cases")).case_file))
    case.drawn.values[0] = {"lane": "sideways"}
    with pytest.raises(CaseError, match="does not fit its clause: draw 0"):
        replay("wrong", case, LIMIT_S)


WITH_A_HELPER = """
import os, time
from flexref_numpy import NumpyBackend


class WithAHelper(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        helper = os.fork()
        if not helper:
            time.sleep(3600)
        with open("helpers", "a") as file:
            print(helper, file=file)
        os.abort()


class Bare:
    name = "bare"


class OtherCaps(NumpyBackend):
    def __init__(self):
        super().__init__()
        self.caps = {"computes": True}
"""


def test_a_crash_is_a_crash_though_a_process_of_the_port_lives_on_which_is_ended(
    planted: Install, tmp_path: Path
) -> None:
    planted(WITH_A_HELPER, wrong="planted_port:WithAHelper")
    found = only(tried("layer_norm_is_the_norm"))
    assert (found.status, found.method) == ("crashed", "layer_norm")
    until = time.monotonic() + LIMIT_S
    helpers = (tmp_path / "helpers").read_text().split()
    assert helpers
    while any(map(lives, helpers)):
        assert time.monotonic() < until
        time.sleep(0.05)


def lives(process: str) -> bool:
    """Whether it runs still: who has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("port", "said"),
    [
        ("Bare", "its attribute `caps` is not there, needed a value of type Capabilities"),
        ("OtherCaps", "its attribute `caps` is .*, needed a value of type Capabilities"),
    ],
)
def test_a_port_that_does_not_say_what_it_is_is_told_so(planted: Install, port: str, said: str) -> None:
    planted(WITH_A_HELPER, wrong=f"planted_port:{port}")
    with pytest.raises(ConformanceError, match=f"^backend wrong cannot be made: {said}$"):
        tried("layer_norm_is_the_norm")


WITH_A_THREAD = """
import threading
from flexref_numpy import NumpyBackend


class WithAThread(NumpyBackend):
    def __init__(self):
        super().__init__()
        self.ended = threading.Event()
        threading.Thread(target=self.ended.wait).start()

    def close(self):
        super().close()
        self.ended.set()
"""


def test_a_port_may_have_a_thread_that_ends_when_it_is_closed(planted: Install) -> None:
    planted(WITH_A_THREAD, wrong="planted_port:WithAThread")
    assert only(tried("layer_norm_is_the_norm")).status == "passed"


def test_cases_go_into_a_folder_or_nothing_is_tried(planted: Install, tmp_path: Path) -> None:
    planted(right="flexref_numpy:NumpyBackend")
    (tmp_path / "cases").write_text("mine")
    with pytest.raises(StorageError, match=r"cases: it is no folder$"):
        tried("layer_norm_is_the_norm", cases="cases")
    assert (tmp_path / "cases").read_text() == "mine"
