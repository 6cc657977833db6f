"""A trace holds to the Trace Event format, whoever wrote it and however it ended, and tells all that moved."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import stages
from flexref.block.rows import RowLengths
from flexref.block.tracing.trace import Trace
from flexref.block.tracing.trace_file import PENDING_BYTES, TraceFile
from flexref.cli.main import COMMANDS, command_group, run
from flexref.engine.request import Request
from flexref.errors import StorageError
from flexref.loading import load
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import open_weight_file
from flexref.tiers.weights import WeightStore
from flexref.version import __version__

SPEC = ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64)
STREAMED = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=2)
HALF = Policy(Shares(0.5, 0.25, 0.25), Shares(0.5, 0.5, 0), Shares(0.5, 0, 0.5), rows_per_group=2, groups_per_block=2)
ON_HOST = Policy(cache=Shares(0, 1, 0), attention_on="host", rows_per_group=2)
SERIAL = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=1, overlap=False)

LOADING = "loading"

Event = dict[str, Any]


def loaded(path: Path, *, whole: bool = True) -> list[Event]:
    """The events of a trace in the array form, whose end may be missing where the writer was killed."""
    text = path.read_text()
    if not whole and not text.endswith("]\n"):
        text = text.rstrip().rstrip(",") + "]"
    found = json.loads(text)
    assert isinstance(found, list)
    return found


def check_format(events: list[Event], *, whole: bool = True) -> None:
    """What the Trace Event format asks of events, and what viewers need to show them; `whole`: no arrow is cut off."""
    named: dict[int, Counter[str]] = defaultdict(Counter)
    slices: dict[int, list[tuple[float, float]]] = defaultdict(list)
    arrows: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        assert event["ph"] in "XMCsf"
        assert event["name"]
        assert {type(event["pid"]), type(event["tid"])} == {int}
        assert event["ts"] >= 0
        if event["ph"] == "M":
            (value,) = event["args"].values()
            assert {"process_name": "name", "process_labels": "labels"}.get(event["name"], "") in {*event["args"], ""}
            assert isinstance(value, int if event["name"] == "thread_sort_index" else str)
            named[event["tid"]][event["name"]] += 1
        elif event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["cat"]
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
        else:
            arrows[event["id"]].append(event)
    assert named[0] == {"process_name": 1, "process_labels": 1}
    for thread, spans in slices.items():
        assert named[thread] == {"thread_name": 1, "thread_sort_index": 1}
        for (_, before), (after, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert after >= before - 2e-3  # a lane does one thing after another, to the nanosecond
    for ends in arrows.values():
        if not whole and len(ends) == 1:
            continue
        start, end = ends
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"]
        for place in ends:
            assert any(begin <= place["ts"] <= stop + 1e-3 for begin, stop in slices[place["tid"]])
    assert min(event["ts"] for event in events if event["ph"] != "M") == 0


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), arguments)


def threads_of(events: list[Event]) -> dict[str, int]:
    return {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}


def traced(model: str, path: Path, policy: Policy, rows: int = 5, *, loaded_before: bool = False) -> Any:
    with load(model, policy=policy, scratch_bytes=1 << 16) as engine, Trace(path) as trace:
        if loaded_before:
            engine.session.weights_for(policy)
        prompts = [[5 + row, 7] for row in range(rows)]
        return engine.generate(prompts, Request(3, ignore_eos=True), trace=trace).stats


@pytest.mark.parametrize("policy", [STREAMED, HALF, ON_HOST, SERIAL, Policy()])
def test_a_trace_holds_to_the_format_and_counts_what_the_account_counts(
    model_file: Any, tmp_path: Path, policy: Policy
) -> None:
    path = tmp_path / "trace.json"
    stats = traced(model_file(SPEC), path, policy)
    events = loaded(path)
    check_format(events)
    copies = [event for event in events if event["ph"] == "X" and "link" in event["args"] and event["name"] != LOADING]
    by_link = dict.fromkeys(stats.link_bytes, 0)
    for event in copies:
        by_link[event["args"]["link"]] += event["args"]["bytes"]
    assert by_link == {link: sum(kinds.values()) for link, kinds in stats.link_bytes.items()}
    assert set(threads_of(events)) == stats.lane_busy.keys()


@pytest.mark.parametrize("beside", [True, False])
def test_what_is_loaded_as_a_job_begins_is_told_beside_it(
    model_file: Any, tmp_path: Path, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not beside:
        monkeypatch.setattr(WeightStore, "begin", WeightStore.load)
    traced(model_file(SPEC), tmp_path / "trace.json", HALF)
    traced(model_file(SPEC), tmp_path / "loaded.json", HALF, loaded_before=True)
    events = loaded(tmp_path / "trace.json")
    check_format(events)
    copies = [event for event in events if event["name"] == LOADING]
    lanes = {(event["args"]["link"], event["cat"]) for event in copies}
    assert lanes == {
        ("disk->host", LOADING if beside else "disk_in"),
        ("host->device", LOADING if beside else "weights_in"),
    }
    assert sum(event["args"]["bytes"] for event in copies) > open_weight_file(model_file(SPEC)).nbytes
    assert not [event for event in loaded(tmp_path / "loaded.json") if event["name"] == LOADING]


def test_visits_say_what_they_computed(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    traced(model_file(SPEC), path, STREAMED)
    events = loaded(path)
    visits = [event["args"] for event in events if event.get("cat") == "compute"]
    file = open_weight_file(model_file(SPEC))
    names = [stage.name for stage in stages(file.spec, file.tile_rows)]
    assert len(visits) == len(names) * 3 * 3  # passes, and groups: two, then one that the fifth row has alone
    assert [(visit["block"], visit["pass"], visit["stage"], visit["group"]) for visit in visits] == [
        (0, number, stage, group) for number in range(6) for stage in names for group in range(2 if number < 3 else 1)
    ]
    for visit in visits:
        assert visit["rows"] == (2 if visit["pass"] < 3 else 1)
        assert visit["tokens"] == visit["rows"] * (2 if visit["pass"] in (0, 3) else 1)
        assert visit.get("layer") == (int(visit["stage"][-1]) if visit["stage"].startswith("layer") else None)


def test_arrows_lead_from_every_copy_inward_to_the_visit_that_uses_it(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    traced(model_file(SPEC), path, STREAMED, rows=4)
    events = loaded(path)
    threads = threads_of(events)
    inward = {threads[lane] for lane in ("disk_in", "weights_in", "cache_in")}
    copies = [event for event in events if event["ph"] == "X" and event["tid"] in inward]
    starts = [event for event in events if event["ph"] == "s"]
    assert Counter((event["tid"], event["ts"]) for event in starts) == Counter(
        (event["tid"], event["ts"]) for event in copies
    )
    visits = {event["ts"]: event["args"] for event in events if event.get("cat") == "compute"}
    used_by = {event["id"]: visits[event["ts"]] for event in events if event["ph"] == "f"}
    what = {(event["tid"], event["ts"]): event["name"] for event in copies}
    for event in starts:
        name, visit = what[event["tid"], event["ts"]], used_by[event["id"]]
        if name.endswith("weights"):
            assert (name, visit["group"]) == (f"{visit['stage']} weights", 0)
        elif name.endswith("cache"):
            assert name == f"{visit['stage']} cache"


def test_counters_tell_what_every_tier_holds(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    stats = traced(model_file(SPEC), path, STREAMED, loaded_before=True)
    held: dict[str, list[int]] = defaultdict(list)
    for event in loaded(path):
        if event["ph"] == "C":
            held[event["name"]].append(sum(event["args"].values()))
    assert {name: max(values) for name, values in held.items()} == {
        f"bytes held on {tier}": nbytes for tier, nbytes in stats.peak_bytes.items()
    }
    # In the end a job holds what it did before its block, for which its weights may have been staged anew.
    assert all(values[-1] in values[:2] and values[-1] < max(values) for values in held.values())


@pytest.mark.parametrize("policy", [STREAMED, HALF, ON_HOST, SERIAL, Policy()])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_simulated_job_is_traced_on_its_own_clock(tmp_path: Path, policy: Policy, asynchronous: bool) -> None:
    path, machine = tmp_path / "trace.json", plain_machine(asynchronous=asynchronous)
    with Trace(path) as trace:
        found = simulate(random_file(SPEC), machine, policy, [RowLengths(8, 4)] * 4, None, trace)
    events = loaded(path)
    check_format(events)
    end_s = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X") / 1e6
    # Told is what happens until the first rows have ended, which takes four passes. The host's own work of the last
    # visit comes after its operators.
    told_s = end_s + machine.host_s.visit
    assert told_s == pytest.approx((found.prefill_s + found.decode_s) * 4 / found.passes, rel=0.01)


def test_several_jobs_follow_one_another_in_one_trace(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16) as engine, Trace(path) as trace:
        for _ in range(2):
            engine.generate([[5]], Request(2, ignore_eos=True), trace=trace)
    events = loaded(path)
    check_format(events)
    assert {event["args"]["block"] for event in events if event.get("cat") == "compute"} == {0, 1}


@pytest.mark.parametrize("command", ["generate", "eval", "bench"])
def test_commands_write_traces(tmp_path: Path, command: str) -> None:
    path, text = tmp_path / "trace.json", tmp_path / "text"
    text.write_text("In the beginning God created the heaven and the earth. " * 40)
    place = ("--percent", *"000000")
    calls = {
        "generate": ("generate", "--model", "demo", "--prompt", "The", "--max-new-tokens", "3", *place),
        "eval": ("eval", "--model", "demo", "--text", str(text), *place),
        "bench": ("bench", "--model", "tiny", "--rows", "2", "--prompt-len", "4", "--gen-len", "3", "--repeat", "2"),
    }
    assert flexref(*calls[command], "--trace", str(path)) == 0
    events = loaded(path)
    check_format(events)
    labels = [event["args"] for event in events if event["name"] == "process_labels"]
    assert labels == [{"labels": f"flexref {__version__}"}]


def test_an_interrupted_job_leaves_a_whole_trace(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    told: list[int] = []

    def interrupt(stage: Any, group: int, pass_number: int) -> None:
        told.append(group)
        if len(told) == 10:
            raise KeyboardInterrupt

    engine = load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16)
    with engine, pytest.raises(KeyboardInterrupt), Trace(path) as trace:
        engine.generate([[5], [6], [7], [8]], Request(9, ignore_eos=True), trace=trace, on_visit=interrupt)
    events = loaded(path)
    check_format(events, whole=False)
    assert sum(event.get("cat") == "compute" for event in events) == 9


def test_a_killed_process_leaves_what_has_happened(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    arguments = ("generate", "--model", "demo", "--prompt", "The", "--max-new-tokens", "120", "--ignore-eos")
    process = subprocess.Popen(
        [sys.executable, "-m", "flexref", *arguments, "--percent", *"000000", "--trace", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not (path.exists() and b'"compute"' in path.read_bytes()):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    events = loaded(path, whole=False)
    check_format(events, whole=False)
    assert any(event.get("cat") == "compute" for event in events)


# The file


def test_the_file_grows_and_memory_does_not(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    file.open()
    for number in range(2 * PENDING_BYTES // 10):
        file.add({"name": number})
        assert file._pending_bytes < PENDING_BYTES
    assert (tmp_path / "trace.json").stat().st_size > PENDING_BYTES
    file.close()
    file.close()
    assert len(loaded(tmp_path / "trace.json")) == 2 * PENDING_BYTES // 10


def test_a_job_after_the_end_of_a_trace_begins_it_again(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16) as engine:
        trace = Trace(path)
        for _ in range(2):
            engine.generate([[5, 7]], Request(2, ignore_eos=True), trace=trace)
            trace.close()
            check_format(loaded(path))


def test_a_trace_of_nothing_is_whole_json(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    file.open()
    file.close()
    assert loaded(tmp_path / "trace.json") == []


def test_a_full_disk_ends_the_trace_and_not_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "--model", "demo", "--prompt", "The king", "--max-new-tokens", "3")
    assert flexref(*arguments, "--trace", "/dev/full") == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("The king")
    assert shown.err.endswith("flexref: cannot write /dev/full: No space left on device\n")
    assert "tokens/s" in shown.err


def test_what_could_not_be_written_whole_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    file = TraceFile(path)
    file.open()
    file.add({"name": "first"})
    file.flush()
    kept = path.read_bytes()
    real = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return int(real(descriptor, data[: len(data) // 2]))

    monkeypatch.setattr("flexref.block.tracing.trace_file.os.write", half)
    file.add({"name": "second", "args": "x" * 40})
    file.flush()
    assert path.read_bytes() == kept
    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device"):
        file.close()
    assert loaded(path, whole=False) == [{"name": "first"}]
