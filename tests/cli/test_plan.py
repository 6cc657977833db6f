"""`flexref plan`: what it prints and writes, what it costs, and what is refused in one line."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show import plots
from flexref.errors import PolicyError, StorageError
from flexref.machine.plain import plain_machine
from flexref.planner import plan as planning
from flexref.planner.plan_request import PlanRequest
from flexref.policy import Policy

JOB = ("--model", "125m", "--prompt-len", "32", "--gen-len", "4")
PAIR = ("--rows-per-group", "4", "--groups", "2")
FEW = (*JOB, *PAIR, "--attention-on", "device")
ONE = (*FEW, "--quantize-weights", "int4", "--quantize-cache", "none")


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    plain_machine(capacity_bytes=(300 << 20, 1 << 30, 1 << 34)).changed(warnings=("links spread",)).write(path)
    return str(path)


@pytest.fixture
def cramped(tmp_path: Path) -> str:
    """A machine whose cache spills to disk."""
    path = tmp_path / "cramped.json"
    plain_machine(capacity_bytes=(100 << 20, 46 << 20, 1 << 34)).write(path)
    return str(path)


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["plan", *arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert flexref(*arguments, "--json") == 0
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def test_a_plan_is_printed_with_what_it_was_chosen_from(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    assert flexref(*FEW, "--machine", machine, "--price-per-hour", "2", "--disk-tbw", "600") == 0
    shown = capsys.readouterr().out
    for expected in (
        *("125m on plain: prompts of 32 tokens, 4 new tokens", "best: ", "4 x 2 rows", "for 8 rows in 1 block"),
        *("what binds: compute in prefill", "What lies where", "weights", "KV cache", "peak", "300.00 MiB"),
        *("GiB of device memory", "GB/s of host->device", "Candidates", "fp16 weights", "4-bit cache", "rows x groups"),
        *("a million generated tokens cost", "the drive is not written to", "4 solved, 0 ruled out", "links spread"),
    ):
        assert expected in shown
    none = shown[shown.index("no more tokens/s from one more of:") : shown.index("Candidates")]
    assert "GB/s of host->disk" in " ".join(none.split())


def test_what_does_not_fit_is_a_candidate_with_its_reason(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    budgets = ("--device-mem-gib", "0.1", "--host-mem-gib", "0.05", "--disk-gib", "0")
    assert flexref(*FEW, "--machine", machine, *budgets) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "too small" in shown
    candidates = as_json(capsys, *FEW, "--machine", machine, *budgets)["candidates"]
    assert {candidate["problem"] is None for candidate in candidates} == {True, False}
    assert all((candidate["policy"] is None) == (candidate["problem"] is not None) for candidate in candidates)


def test_the_policy_file_is_read_by_the_next_command(
    capsys: pytest.CaptureFixture[str], machine: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    printed = as_json(capsys, *ONE, "--machine", machine, "-o", str(path))
    assert json.loads(path.read_text()) == printed
    assert Policy.read(path) == Policy.from_mapping(printed["policy"])
    assert {"policy", "predicted", "binding", "one_more", "candidates"} <= set(printed)
    assert {"prefill_s", "decode_s", "tokens_per_s", "peak_bytes", "binding"} <= set(printed["predicted"])


def test_options_are_what_the_planner_is_asked(
    capsys: pytest.CaptureFixture[str], machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = planning.plan

    def plan(model: str, machine: Any, wanted: Any, *, trace: Any) -> Any:
        asked.append(wanted)
        return real(model, machine, wanted, trace=trace)

    monkeypatch.setattr(planning, "plan", plan)
    bounds = ("--max-latency-s", "9", "--max-disk-writes-gib", "0", "--rows", "5", "--no-overlap", "--no-row-invariant")
    capacities = ("--device-mem-gib", "0.5", "--host-mem-gib", "2", "--disk-gib", "3")
    as_json(capsys, *ONE, "--machine", machine, *bounds, *capacities)
    assert asked == [
        PlanRequest(32, 4, 5, ("int4",), ("none",), ("device",), 4, 2, False, 9.0, 0.0, 0.5, 2.0, 3.0, False)
    ]


def test_a_plan_says_where_rows_need_no_bits_of_their_own(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    for options, on in (((), True), (("--no-row-invariant",), False)):
        assert as_json(capsys, *ONE, "--machine", machine, *options)["policy"]["row_invariant"] is on
        assert flexref(*ONE, "--machine", machine, *options) == 0
        assert ("4 x 2 rows; rows without bits of their own" in capsys.readouterr().out) is not on


def test_costs_are_keys_of_the_json(capsys: pytest.CaptureFixture[str], cramped: str) -> None:
    power = ("--watts", "300", "--price-per-kwh", "0.4", "--disk-tbw", "600")
    job = ("--model", "125m", "--prompt-len", "128", "--gen-len", "4", "--rows-per-group", "4", "--groups", "4")
    place = ("--attention-on", "device", "--quantize-weights", "int4", "--quantize-cache", "none")
    printed = as_json(capsys, *job, *place, "--machine", cramped, *power)
    predicted = printed["predicted"]
    assert printed["cost_per_million_tokens"] == pytest.approx(1e6 / predicted["tokens_per_s"] / 3600 * 0.12)
    written = printed["disk_written_bytes_per_million_tokens"]
    assert written == pytest.approx(predicted["disk_write_bytes"] / predicted["generated_tokens"] * 1e6)
    assert written > 0
    bytes_per_day = written / 1e6 * predicted["tokens_per_s"] * 86400
    assert printed["disk_life_days"] == pytest.approx(600e12 / bytes_per_day)
    for rated, life in ((6, "days\n"), (60000, "years (")):
        assert flexref(*job, *place, "--machine", cramped, "--disk-tbw", str(rated)) == 0
        lasts = printed["disk_life_days"] / 600 * rated / (365.25 if "years" in life else 1)
        assert f"to disk\nat that rate the drive lasts {lasts:.3g} {life}" in capsys.readouterr().out


def test_what_has_no_price_costs_nothing_that_is_known(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    printed = as_json(capsys, *ONE, "--machine", machine)
    assert printed["disk_written_bytes_per_million_tokens"] == 0
    assert not {"cost_per_million_tokens", "disk_life_days"} & set(printed)


def test_plots_and_traces_are_written(capsys: pytest.CaptureFixture[str], machine: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, trace = tmp_path / "front.PNG", tmp_path / "trace.json"
    as_json(capsys, *ONE, "--machine", machine, "--pareto", str(plot), "--trace", str(trace))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())


@pytest.mark.parametrize("suffix", sorted(plots.METADATA))
def test_the_same_plans_are_drawn_the_same_every_time_and_in_any_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    wanted = PlanRequest(32, 4, 5, ("none", "int4"), ("none",), ("device",), 4, 2)
    points = [(1.0 + at, one) for at, one in enumerate(planning.plan("tiny", plain_machine(), wanted).candidates)]
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    plots.draw_pareto("tiny", points, str(one))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # another day, to matplotlib
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9}):
        plots.draw_pareto("tiny", points, str(two))
    assert one.read_bytes() == two.read_bytes()


def test_a_plot_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "front.png"
    plot.write_bytes(b"older")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    wanted = PlanRequest(32, 4, 5, ("none", "int4"), ("none",), ("device",), 4, 2)
    points = [(1.0, one) for one in planning.plan("tiny", plain_machine(), wanted).candidates]
    with pytest.raises(StorageError, match=f"cannot write {plot}: No space left on device"):
        plots.draw_pareto("tiny", points, str(plot))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("front.png", b"older")]


def test_without_a_machine_this_one_is_measured_with_the_port_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexref.profile import kept_machines as machines

    ports = []

    def measured(backend: Any, disk_dir: str, *, tell: Any) -> Any:
        ports.append(backend.name)
        tell("this machine is measured once")
        return plain_machine()

    monkeypatch.setattr(machines, "measured_machine", measured)
    assert flexref(*ONE, "--json") == 0
    shown = capsys.readouterr()
    assert shown.err == "this machine is measured once\n"
    assert json.loads(shown.out)["machine"] == "plain"
    assert flexref(*ONE, "--backend", "abacus") == 2
    assert "abacus" in capsys.readouterr().err
    assert ports == ["numpy"]


@pytest.mark.parametrize("command", ["plan", "compare-machines"])
@pytest.mark.parametrize(
    ("tier", "budgets"),
    [("device", ("0.01", "1", "1")), ("host", ("0.05", "0.01", "0")), ("disk", ("0.05", "0.05", "0.01"))],
)
def test_what_would_help_is_an_option_of_the_command_and_helps(
    capsys: pytest.CaptureFixture[str], machine: str, command: str, tier: str, budgets: tuple[str, ...]
) -> None:
    given = dict(zip(("--device-mem-gib", "--host-mem-gib", "--disk-gib"), budgets, strict=True))

    def problem() -> str:
        options = [part for option in given.items() for part in option]
        code = run(command_group(COMMANDS), [command, *ONE, "--machine", machine, *options, "--json"])
        shown = capsys.readouterr()
        return shown.err if code else json.loads(shown.out).get("rows", [{"problem": None}])[0]["problem"] or ""

    said = problem()
    assert f"{tier} memory is too small by" in said
    (help_of_it,) = re.findall(r"give (--[a-z-]+) at least ([0-9.]+)", said)
    assert help_of_it[0] in given
    assert tier in help_of_it[0]
    given[help_of_it[0]] = str(1.5 * float(help_of_it[1]))  # tensors cannot be cut: just so much need not do
    assert problem() == ""


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--machine", "no-such-card"), 2, "neither a machine's file nor a known machine; known: a10"),
        (("--machine", "t4-gcp", "--watts", "70"), 2, "--watts and --price-per-kwh go together"),
        (
            ("--machine", "t4-gcp", "--watts", "70", "--price-per-kwh", "1", "--price-per-hour", "1"),
            2,
            "give --price-per-hour, or --watts and --price-per-kwh",
        ),
        (("--machine", "t4-gcp", "--device-mem-gib", "0.001"), 1, "device"),
        (("--machine", "h100", "--attention-on", "host"), 1, "cannot compute attention on the host"),
        (("--machine", "t4-gcp", "--max-latency-s", "1e-9"), 1, "allowed are 1e-09 s"),
        (("--machine", "t4-gcp", "--max-latency-s", "nan"), 2, "nan is not a finite number"),
        (("--machine", "t4-gcp", "--disk-gib", "inf"), 2, "inf is not a finite number"),
        (("--machine", "t4-gcp", "--max-disk-writes-gib", "-1"), 2, "-1.0 is not in the range x>=0"),
        (("--machine", "t4-gcp", "--disk-tbw", "0"), 2, "0.0 is not in the range x>0"),
        (("--machine", "t4-gcp", "--rows", "0"), 2, "0 is not in the range 1<=x"),
        (("--model", "12b", "--machine", "t4-gcp"), 2, "'12b' is neither a weight file nor the size of a model"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    assert flexref(*JOB, *PAIR, *arguments) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    on_a_slow_machine = "planning 125m on "  # begins a line that says how long it takes already
    said = [line for line in error.splitlines() if not line.startswith(on_a_slow_machine)]
    assert code == 2 or len(said) == 1


@pytest.mark.parametrize(
    ("option", "path", "complaint"),
    [
        ("-o", "/no/such/folder/policy.json", "cannot write /no/such/folder/policy.json: there is no folder"),
        ("-o", "/tmp", "cannot write /tmp: it is a folder"),
        ("--trace", "/no/trace.json", "cannot write /no/trace.json: there is no folder /no"),
        ("--pareto", "/no/front.png", "cannot write /no/front.png: there is no folder /no"),
        ("--pareto", "front.doc", "--pareto writes .png, .svg, .pdf files, found 'front.doc'"),
    ],
)
def test_what_could_not_be_written_is_refused_before_anything_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, path: str, complaint: str
) -> None:
    monkeypatch.setattr(planning, "plan", None)
    assert flexref(*JOB, "--machine", "t4-gcp", option, path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_an_output_on_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert flexref(*ONE, "--machine", machine, "-o", "/dev/full") == 1
    assert capsys.readouterr().err == "flexref: cannot write /dev/full: No space left on device\n"


def test_a_plot_without_matplotlib_names_the_command_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert flexref(*JOB, "--machine", "t4-gcp", "--pareto", "front.png") == 1
    (line,) = capsys.readouterr().err.splitlines()
    needed = "pip install '.[plots]' in the checkout of flexref"
    assert line == f"flexref: --pareto needs matplotlib, which is not installed: {needed}"


def test_matplotlib_is_loaded_for_plots_alone(machine: str) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from flexref.cli.main import main; main()"
    command = [sys.executable, "-c", code, "plan", *ONE, "--machine", machine, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["policy"]


def test_a_job_of_a_billion_rows_is_planned_without_a_list_of_them(
    capsys: pytest.CaptureFixture[str], machine: str
) -> None:
    few, many = (as_json(capsys, *ONE, "--machine", machine, "--rows", rows) for rows in ("8", "1000000000"))
    assert (many["predicted"]["rows"], many["predicted"]["blocks"]) == (10**9, 1)
    assert many["predicted"]["passes"] == 125_000_000 * few["predicted"]["passes"]
    assert many["predicted"]["prefill_s"] == pytest.approx(125_000_000 * few["predicted"]["prefill_s"])
    odd = as_json(capsys, *ONE, "--machine", machine, "--rows", "11")["predicted"]
    assert (odd["rows"], odd["blocks"], odd["passes"], odd["generated_tokens"]) == (11, 1, 8, 44)


@pytest.mark.parametrize("option", ["--rows", "--prompt-len", "--gen-len", "--rows-per-group", "--groups"])
def test_a_number_beyond_sense_is_a_usage_error(capsys: pytest.CaptureFixture[str], machine: str, option: str) -> None:
    assert flexref("--model", "125m", "--machine", machine, option, str(10**20)) == 2
    assert "is not in the range" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"rows": 10**20}, {"rows": 0}, {"rows_per_group": 1 << 40}, {"groups": True}])
def test_a_plan_request_beyond_sense_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(PolicyError, match=f"^{name} must be an integer from 1 to "):
        PlanRequest(32, 4, **wrong)
