"""`flexref compare-machines`: every model on every machine, the best first, and what cannot run says why."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.machine import known as machines
from flexref.machine.names import known_machines
from flexref.machine.plain import plain_machine
from flexref.planner import plan as planning
from flexref.version import __version__

ONE = (
    *("--prompt-len", "32", "--gen-len", "4", "--rows-per-group", "4", "--groups", "1", "--attention-on", "device"),
    *("--quantize-weights", "int4", "--quantize-cache", "none"),
)


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["compare-machines", *arguments])


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert flexref(*ONE, *arguments, "--json") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of three machines: slow, fast, and one that holds no model."""
    for name, flops_per_s in (("slow", 1e11), ("fast", 1e13)):
        plain_machine(flops_per_s=flops_per_s, capacity_bytes=(1 << 30, 1 << 30, 0)).write(tmp_path / f"{name}.json")
    plain_machine(capacity_bytes=(1 << 20, 1 << 20, 0)).write(tmp_path / "small.json")
    return tmp_path


def machine_options(folder: Path, *names: str) -> tuple[str, ...]:
    return tuple(part for name in names for part in ("--machine", str(folder / f"{name}.json")))


def names_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["model"], Path(row["machine"]).stem) for row in rows]


def test_of_every_model_the_fastest_machine_comes_first_and_what_does_not_fit_last(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    models = ("--model", "350m", "--model", "125m")
    rows = rows_of(capsys, *models, *machine_options(folder, "small", "slow", "fast"))
    machines = ("fast", "slow", "small")
    assert names_of(rows) == [(model, machine) for model in ("350m", "125m") for machine in machines]
    assert rows[0]["tokens_per_s"] > rows[1]["tokens_per_s"]
    assert rows[0]["policy"]["rows_per_group"] == 4
    assert rows[0]["in_short"].startswith("4-bit weights, fp16 cache, attention on device; 4 x 1 rows")
    assert "too small" in rows[2]["problem"]
    assert {row["tokens_per_s"] is None for row in rows if row["problem"] is not None} == {True}
    assert len({tuple(row) for row in rows}) == 1


def test_with_prices_the_cheapest_comes_first_and_what_has_none_after_it(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    where = ("--model", "125m", *machine_options(folder, "small", "slow", "fast"))
    slow, fast = folder / "slow.json", folder / "fast.json"
    both = rows_of(capsys, *where, "--price-per-hour", f"{slow}=0.001", "--price-per-hour", f"{fast}=100")
    assert names_of(both) == [("125m", machine) for machine in ("slow", "fast", "small")]
    for row, price in zip(both, (0.001, 100), strict=False):
        assert row["cost_per_million_tokens"] == pytest.approx(1e6 / row["tokens_per_s"] / 3600 * price)
    one = rows_of(capsys, *where, "--price-per-hour", f"{slow}=1000")
    assert names_of(one) == [("125m", machine) for machine in ("slow", "fast", "small")]
    assert one[1]["cost_per_million_tokens"] is None
    free = rows_of(capsys, *where, "--price-per-hour", f"{slow}=0", "--price-per-hour", f"{fast}=0")
    assert names_of(free)[0] == ("125m", "fast")


def test_the_table_says_what_each_machine_makes_of_each_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(folder)
    where = ("--model", "125m", "--machine", "fast.json", "--machine", "small.json", "--machine", "fast.json")
    assert flexref(*ONE, *where, "--price-per-hour", "fast.json=2") == 0
    shown = capsys.readouterr()
    for expected in ("What each machine makes", "cost of 1 M tokens", "4 x 1 rows", "too small"):
        assert expected in shown.out
    assert "written for" not in shown.out  # nothing is
    assert shown.err == ""


def test_without_machines_all_known_ones_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = known_machines()
    monkeypatch.setattr(machines, "machine_named", lambda name: plain_machine().changed(name=name))
    rows = rows_of(capsys, "--model", "tiny")
    assert {row["machine"] for row in rows} == set(names)


@pytest.mark.parametrize("priced", [False, True])
def test_plots_are_the_same_every_time(
    capsys: pytest.CaptureFixture[str], folder: Path, priced: bool, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    drawn = [tmp_path / "one.png", tmp_path / "two.png"]
    where = ("--model", "125m", *machine_options(folder, "fast", "slow", "small"))
    price = ("--price-per-hour", f"{folder / 'fast.json'}=3") if priced else ()
    for plot in drawn:
        rows_of(capsys, *where, *price, "--plot", str(plot))
    first, second = (plot.read_bytes() for plot in drawn)
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_a_plot_names_its_job_and_every_machine_and_says_why_one_has_no_figure(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.svg"
    where = ("--model", "125m", *machine_options(folder, "fast", "slow", "small"), "--host-mem-gib", "0.5")
    rows_of(capsys, *where, "--price-per-hour", f"{folder / 'fast.json'}=3", "--plot", str(plot))
    texts = re.findall(r"<!-- (.*?) -->", plot.read_text())  # matplotlib draws letters, and notes what they say
    assert {"fast", "slow", "small", " no price was given", " cannot run it"} <= set(texts)
    assert "Cost of a million tokens: 125m" in texts
    about = " ".join(texts)
    assert "as many rows as fill a block, prompts of 32 tokens, 4 new tokens; " in about
    assert "host at most 0.5 GiB" in about
    assert f"predicted by flexref {__version__}, {date.today().isoformat()}" in about


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "Missing option '--model'"),
        (("--model", "125m", "--machine", "t4"), 2, "'t4' is neither a machine's file nor a known machine"),
        (("--model", "125m", "--price-per-hour", "cheap"), 2, "must be MACHINE=PRICE, found 'cheap'"),
        (("--model", "125m", "--price-per-hour", "t4-gcp=-1"), 2, "must be MACHINE=PRICE, found 't4-gcp=-1'"),
        (("--model", "125m", "--price-per-hour", "t4-gcp=nan"), 2, "must be MACHINE=PRICE, found 't4-gcp=nan'"),
        (("--model", "125m", "--price-per-hour", "t9=1"), 2, "names 't9', which is not among the machines"),
        (("--model", "125m", "--plot", "/no/plot.png"), 1, "cannot write /no/plot.png: there is no folder /no"),
        (("--model", "125m", "--plot", "plot.doc"), 1, "--plot writes .png, .svg, .pdf files"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_anything_is_planned(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    complaint: str,
) -> None:
    monkeypatch.setattr(planning, "plan", None)
    assert flexref(*arguments) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert "planning" not in error


def test_a_model_that_nobody_knows_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert flexref("--model", "12b", *machine_options(folder, "fast")) == 2
    assert "'12b' is neither a weight file nor the size of a model" in capsys.readouterr().err.splitlines()[-1]
