"""`flexref bench` as its users call it: suites, options, JSON, and every way in which it refuses or is interrupted."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.architecture.spec import ModelSpec
from flexref.backend import registry
from flexref.bench import benchmark
from flexref.bench.suites import read_suites
from flexref.check.models import write_model
from flexref.cli.main import COMMANDS, INTERRUPTED, command_group, run
from flexref.cli.show import displays
from flexref.policy import Policy, Shares

SMALL = ("--model", "tiny", "--prompt-len", "12", "--gen-len", "4", "--rows", "4", "--rows-per-group", "2")

KEYS = {
    *("prefill_s", "decode_s", "decode_step_s", "tokens_per_s", "peak_bytes", "link_bytes", "floor_s", "floor_ratio"),
    *("prefill_floor_s", "decode_floor_s", "decode_step_floor_s", "versions", "machine", "runs", "cut_short", "suite"),
    *("arguments", "policy", "rates", "check_logits", "check_worst_share", "load_s", "tier_bytes", "placement"),
    *("allocate_s", "tokens_checked", "tokens_check_s"),
}


def bench(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["bench", *arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert bench(*arguments, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_the_progress_of_a_run_says_how_many_tokens_it_has_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(displays, "FIRST_S", 0.0)
    monkeypatch.setattr(displays, "LONGEST_S", 0.001)
    assert bench(*SMALL, "--gen-len", "32") == 0
    found = re.findall(r"^run 1 of 1, (\d+) of 128 tokens, ", capsys.readouterr().err, re.MULTILINE)
    given = list(map(int, found))
    assert given == sorted(given)
    assert given[0] < given[-1] <= 128


@pytest.mark.parametrize(("given", "scheme"), [((), "int4"), (("int4",), "int4"), (("int8",), "int8")])
def test_weights_are_quantized_as_asked(capsys: pytest.CaptureFixture[str], given: Sequence[str], scheme: str) -> None:
    """Nothing after the option, and other options after it, mean 4 bits."""
    found = as_json(capsys, "--quantize-weights", *given, *SMALL)
    assert found["weights_scheme"] == found["arguments"]["quantize_weights"] == scheme
    assert as_json(capsys, *SMALL)["weights_scheme"] == "none"


def test_the_tiny_suite_prints_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "--suite", "tiny")
    assert set(found) >= KEYS
    assert found["suite"] == "tiny"
    assert found["weights"] == "random"
    assert found["weights_scheme"] == "int4"
    assert found["row_invariant"] is True
    (values,) = read_suites()["tiny"].runs
    assert found["arguments"].items() >= {name: value for name, value in values.items()}.items()
    assert found["peak_bytes"]["device"] <= values["device_mem_gib"] * 2**30
    assert found["link_bytes"]["host->device"]["weights"] > 0


def test_options_beside_a_suite_take_the_place_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(Policy(weights=Shares(0.0, 1.0, 0.0)).to_json())
    found = as_json(capsys, "--suite", "tiny", "--rows", "2", "--no-overlap", "--repeat", "2", "--policy", str(policy))
    assert found["arguments"]["rows"] == 2
    assert found["arguments"]["percent"] is None
    assert found["policy"]["weights"] == {"device": 0.0, "host": 1.0, "disk": 0.0}
    assert (found["policy"]["overlap"], found["policy"]["rows_per_group"]) == (False, 4)
    assert len(found["runs"]) == 2
    assert (
        as_json(capsys, "--suite", "tiny", "--percent", *("100", "0", "100", "0", "100", "0"))["link_bytes"][
            "host->device"
        ]
        == {}
    )


def test_the_tables_show_tiers_links_floors_and_every_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    assert bench(*SMALL, "-v", "--percent", *("0", "100") * 3, "--repeat", "2", "--trace", str(trace)) == 0
    shown = capsys.readouterr()
    for text in (
        *("tiny, float16 weights, on numpy: 4 rows of 12 tokens, 4 new tokens each", "checked first: 1152 logits"),
        *("What lay on which tier", "What crossed which link", "busy share of each lane", "Every run"),
        *("Seconds (median of 2 runs) and their floor", "decode step", "tokens/s", "machine:", "versions: flexref"),
    ):
        assert text in shown.out
    assert "run 2 of 2" in shown.err.splitlines()
    assert json.loads(trace.read_text())


def test_a_weight_file_is_timed_with_its_own_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("mine", 90, 40, 64, 64, 2, 2, 128))
    arguments = ("--model", str(path), *SMALL[2:], "--percent", *["0"] * 6, "--disk-dir", str(tmp_path))
    found = as_json(capsys, *arguments)
    assert (found["model"], found["weights"]) == ("mine", str(path))
    assert found["link_bytes"]["disk->host"]["weights"] > 0
    again = as_json(capsys, "--model", str(path), *SMALL[2:], "--random-weights")
    assert (again["model"], again["weights"]) == ("mine", "random")


def test_a_run_that_beats_its_floor_names_the_rate_and_has_no_ratio(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_model(tmp_path / "model.h5", ModelSpec("mine", 90, 40, 64, 64, 2, 2, 128))
    arguments = ("--model", str(tmp_path / "model.h5"), *SMALL[2:], "--percent", *("0", "0", "100", "0", "100", "0"))
    monkeypatch.setattr(benchmark, "weights_rate", lambda *given: 1.0)
    found = as_json(capsys, *arguments)
    for name in ("floor_s", "floor_ratio", "prefill_floor_s", "decode_floor_s", "decode_step_floor_s"):
        assert found[name] is None, name
    for beaten, phase in zip(found["floors_beaten"], ("prefill", "decode"), strict=True):
        assert (beaten["phase"], beaten["term"], beaten["rate"]) == (phase, "weight file", "from_disk_bytes_per_s")
        assert beaten["measured"] == 1
        assert beaten["seconds"] == found[f"{phase}_s"]
        assert beaten["floor_s"] == found[f"{phase}_floor_terms_s"]["weight file"]
        assert beaten["shown"] == pytest.approx(beaten["floor_s"] / beaten["seconds"])
    assert bench(*arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "NO FLOOR: decode took " in shown
    assert "from_disk_bytes_per_s was measured as 1 byte/s and is at least " in shown
    assert "a rate was wrong" in shown


def test_runs_are_repeated_until_their_mean_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *SMALL, "--repeat", "auto")
    assert found["arguments"]["repeat"] == "auto"
    interval = found["tokens_per_s_interval"]
    assert interval["runs"] == len(found["runs"]) >= 5
    assert interval["narrow_enough"] or interval["runs"] == 50
    assert bench(*SMALL, "--repeat", "2") == 0
    shown = capsys.readouterr().out
    assert "95% interval" in shown
    assert "NOT narrow" not in shown
    assert as_json(capsys, *SMALL)["tokens_per_s_interval"] is None
    for wrong in ("0", "some"):
        assert bench(*SMALL, "--repeat", wrong) == 2


def test_suites_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(read_suites())


class Wrong(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        np.maximum(x, 0.1, out=x)
        return x


def test_a_port_that_is_wrong_is_not_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "create", lambda name: Wrong())
    assert bench(*SMALL, "--json") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the port computes something else" in shown.err
    assert "nothing is timed" in shown.err
    assert "run 1" not in shown.err


class Interrupted(NumpyBackend):
    """Ctrl-C comes with a choice of tokens: a run has eight, four for each of two groups, after the warming up."""

    choices = at = 0

    def sample(self, *arguments: Any) -> Any:
        Interrupted.choices += 1
        if Interrupted.choices == self.at:
            raise KeyboardInterrupt
        return super().sample(*arguments)


@pytest.mark.parametrize(("at", "complete"), [(3, 0), (10, 1)])
def test_an_interrupt_says_so_and_leaves_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: int, complete: int
) -> None:
    made: list[Any] = []

    def create(name: str) -> Any:
        made.append(Interrupted() if not made else NumpyBackend())  # the check has a port of its own
        return made[-1]

    monkeypatch.setattr(registry, "create", create)
    for arguments in (("--json",), ()):
        made.clear()
        Interrupted.choices, Interrupted.at = 0, at + benchmark.WARM_UP_NEW
        assert bench(*SMALL, "--repeat", "2", *arguments) == INTERRUPTED
        shown = capsys.readouterr()
        assert "flexref: interrupted" in shown.err
        if arguments:
            found = json.loads(shown.out)
            assert len(found["runs"]) == complete
            assert f"interrupted in run {complete + 1} of 2" in found["cut_short"]
            assert ("tokens_per_s" in found) == bool(complete)
        else:
            assert f"CUT SHORT: interrupted in run {complete + 1} of 2" in shown.out
            assert ("their floor" in shown.out) == bool(complete)


def test_a_trace_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench(*SMALL, "--trace", str(tmp_path)) == 1
    assert capsys.readouterr().err == f"flexref: cannot write {tmp_path}: it is a folder\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--model", "12b"), "'12b' is neither a weight file nor the size of a model"),
        (("--suite", "tiny", "--percent", *("0", "0", "0", "0", "0", "0")), "would lie on disk"),
        (("--suite", "tiny", "--prompt-len", "300"), "the model has 256 positions"),
        (("--suite", "tiny", "--device-mem-gib", "0.005"), "device memory is too small by"),
        (("--suite", "tiny", "--backend", "abacus"), "abacus"),
        (
            ("--suite", "tiny", "--backend", "dry", "--percent", *("50", "50", "50", "50", "50", "50")),
            "computes nothing",
        ),
        (("--suite", "tiny", "--policy", "/nowhere"), "/nowhere"),
        ((*SMALL, "--trace", "/proc/none/trace"), "/proc/none/trace"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert bench(*arguments) == (2 if {"abacus", "12b", "dry"} & set(arguments) else 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flexref:")]
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [(), ("--suite", "case-z"), ("--model", "tiny", "--rows", "0"), ("--model", "tiny", "--percent", "1", "2")],
)
def test_a_call_that_makes_no_sense_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert bench(*arguments) == 2


def test_a_benchmark_needs_no_hypothesis() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; from flexref.cli.main import main; main()"
    command = [sys.executable, "-c", code, "bench", *SMALL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["tokens_per_s"] > 0


def test_a_benchmark_is_compared_with_yesterdays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = as_json(capsys, *SMALL, "--repeat", "2")
    yesterday = tmp_path / "yesterday.json"
    yesterday.write_text(json.dumps(before) + "\n")
    found = as_json(capsys, *SMALL, "--repeat", "3", "--baseline", str(yesterday))["baseline"]
    assert found["where"] == f"{yesterday}, line 1"
    assert set(found["figures"]) == {"prefill_s", "decode_s", "decode_step_s", "tokens_per_s"}
    assert all(figure["least"] <= figure["ratio"] <= figure["most"] for figure in found["figures"].values())
    assert found["figures"]["prefill_s"]["before"] == before["prefill_s"]
    yesterday.write_text(json.dumps({**before, "versions": {**before["versions"], "numpy": "0.1"}}))
    assert bench(*SMALL, "--baseline", str(yesterday)) == 0
    shown = capsys.readouterr().out
    assert "prefill_s" in shown
    assert "numpy was 0.1, is" in shown


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (("--rows", "6"), "rows was 4, is 6: another job"),
        (("--model", "nope"), "'nope'"),
        ((), "cpu_cores was 1000, is"),
    ],
)
def test_what_yesterdays_says_nothing_of_is_refused_before_anything_is_timed(
    changed: Sequence[str], why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = as_json(capsys, *SMALL)
    yesterday = tmp_path / "yesterday.json"
    yesterday.write_text(json.dumps({**before, "machine": {**before["machine"], "cpu_cores": 1000}}))
    assert bench(*SMALL, *changed, "--baseline", str(yesterday)) > 0
    told = capsys.readouterr()
    assert why in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""
