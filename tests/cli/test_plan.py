"""`flexref plan` and `flexref compare-machines`: what they print and write, and what is refused in one line."""

import json
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.policy import Policy
from flexref.testing.machines import plain_machine

SHORT = ("--prompt-len", "32", "--gen-len", "4", "--attention-on", "device")


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    plain_machine(capacity_bytes=(300 << 20, 1 << 30, 1 << 34)).write(path)
    return str(path)


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), list(arguments))


def test_a_plan_is_printed_with_what_it_was_chosen_from(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    assert flexref("plan", "--model", "125m", "--machine", machine, *SHORT, "--price-per-hour", "2") == 0
    shown = capsys.readouterr().out
    for expected in (
        "best:",
        "predicted:",
        "what binds:",
        "GiB of device memory",
        "Candidates",
        "4-bit weights",
        "cost",
    ):
        assert expected in shown


def test_the_policy_file_is_read_by_the_next_command(
    capsys: pytest.CaptureFixture[str], machine: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    assert flexref("plan", "--model", "125m", "--machine", machine, *SHORT, "-o", str(path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(path.read_text())["policy"] == printed["policy"]
    assert Policy.read(path).rows_per_group == printed["policy"]["rows_per_group"]
    assert {"policy", "predicted", "binding", "one_more", "candidates"} <= set(printed)


def test_costs_are_keys_of_the_json(capsys: pytest.CaptureFixture[str], machine: str) -> None:
    power = ("--watts", "300", "--price-per-kwh", "0.4", "--disk-tbw", "600")
    assert flexref("plan", "--model", "125m", "--machine", machine, *SHORT, *power, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["cost_per_million_tokens"] == pytest.approx(1e6 / printed["predicted"]["tokens_per_s"] / 3600 * 0.12)
    assert "disk_life_days" in printed


def test_plots_and_traces_are_written(capsys: pytest.CaptureFixture[str], machine: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, trace = tmp_path / "front.png", tmp_path / "trace.json"
    few = ("--quantize-weights", "int4", "--quantize-cache", "none", "--rows-per-group", "4", "--groups", "2")
    arguments = ("--pareto", str(plot), "--trace", str(trace), "--json")
    assert flexref("plan", "--model", "125m", "--machine", machine, *SHORT, *few, *arguments) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--machine", "no-such-card"), 1, "neither a machine's file nor a known machine; known: a10"),
        (("--machine", "t4-gcp", "--watts", "70"), 2, "--watts and --price-per-kwh go together"),
        (("--machine", "t4-gcp", "--device-mem-gib", "0.001"), 1, "device"),
        (("--machine", "t4-gcp", "--attention-on", "host"), 1, "cannot compute attention on the host"),
        (("--machine", "t4-gcp", "--max-latency-s", "1e-9"), 1, "latency"),
        (("--machine", "t4-gcp", "--pareto", "front.doc"), 1, ".png"),
        (("--machine", "t4-gcp", "-o", "/no/such/folder/policy.json"), 1, "cannot write /no/such/folder/policy.json"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    short = ("--prompt-len", "32", "--gen-len", "4")
    assert flexref("plan", "--model", "125m", *short, *arguments) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    assert code == 2 or len(error.splitlines()) == 1


def test_machines_are_compared_the_cheapest_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, rate in (("slow", 1e9), ("fast", 20e9)):
        plain_machine(link_per_s=rate, capacity_bytes=(64 << 20, 1 << 30, 0)).write(tmp_path / f"{name}.json")
    slow, fast = str(tmp_path / "slow.json"), str(tmp_path / "fast.json")
    common = ("compare-machines", "--machine", slow, "--machine", fast, "--model", "125m", *SHORT, "--rows", "4")
    assert flexref(*common, "--json") == 0
    assert [row["machine"] for row in json.loads(capsys.readouterr().out)["rows"]] == [fast, slow]
    priced = ("--price-per-hour", f"{slow}=0.001", "--price-per-hour", f"{fast}=100", "--json")
    assert flexref(*common, *priced) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["machine"] for row in rows] == [slow, fast]
    assert rows[0]["cost_per_million_tokens"] < rows[1]["cost_per_million_tokens"]


def test_what_does_not_fit_a_machine_stays_in_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain_machine(capacity_bytes=(1 << 20, 1 << 20, 0)).write(tmp_path / "tiny.json")
    common = ("compare-machines", "--machine", str(tmp_path / "tiny.json"), "--model", "125m", *SHORT)
    assert flexref(*common, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["problem"]
    assert flexref(*common, "--price-per-hour", "cheap") == 2
    assert "MACHINE=PRICE" in capsys.readouterr().err
