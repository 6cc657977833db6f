"""The published schemas: real files and real outputs keep them, wrong ones do not, and every property is described."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json_schema_kit
import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_tree_kit import places, replaced

import flexref.data
from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.log_lines import JsonLog
from flexref.batch_job.watching.pace import JobPace
from flexref.bench.suites import read_suites
from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.schemas.command import SCHEMAS, schema
from flexref.errors import PolicyError
from flexref.json_types.objects import DIALECT
from flexref.machine.machine import Machine, read_machine_object
from flexref.machine.nominal_facts import NOMINAL_FORMAT, NominalFacts
from flexref.machine.plain import plain_machine
from flexref.policy import Policy

MACHINES = sorted((Path(flexref.data.__file__).parent / "machines").glob("*.json"))

DOCUMENTS = {name: schema(name) for name in SCHEMAS}

POLICIES = (
    Policy(),
    Policy.from_percent((11.9, 88.1, 0, 100, 33.3, 66.7), rows_per_group=3, weights_scheme="int8"),
    Policy(overlap=False, attention_on="host", cache_scheme="int4"),
)

jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-2, 2) | st.sampled_from(["device", "none", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["device", "x"]), inner, max_size=2),
    max_leaves=4,
)


def printed(capsys: pytest.CaptureFixture[str], *call: str) -> list[Any]:
    """The JSON object on every line that a command prints."""
    assert run(command_group(COMMANDS), call) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def properties(part: Any) -> Iterator[tuple[str, Any]]:
    """(name, schema) of every property in a schema."""
    if isinstance(part, dict):
        yield from part.get("properties", {}).items()
        for inner in part.values():
            yield from properties(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from properties(inner)


def broken(values: Any, document: Any) -> int:
    """In how many places of `values` null, a text or an unknown name in place of what is there breaks the schema."""
    found = 0
    for path in places(values)[1:]:
        for new in ({"no such name": None}, ["x"]):
            found += bool(json_schema_kit.check(replaced(values, path, new), document))
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_command_prints_a_schema_in_which_every_property_is_described(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_group(COMMANDS), ["schema", name]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["$schema"], document["$id"]) == (DIALECT, f"urn:flexref:schema:{name}:1")
    assert document["title"]
    described = list(properties(document))
    assert len(described) >= 10
    assert [part for part, said in described if not said.get("description", "").strip().endswith(".")] == []
    assert all(part["description"] and part["title"] for part in document["$defs"].values())
    assert len({part["title"] for part in document["$defs"].values()}) == len(document["$defs"])


def test_every_schema_is_one_and_means_what_our_kit_makes_of_it() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    examples = {"policy": POLICY_VALUES, "machine": NOMINAL_VALUES}
    for name, document in DOCUMENTS.items():
        jsonschema.Draft202012Validator.check_schema(document)
        validator = jsonschema.Draft202012Validator(document)
        values = json.loads(json.dumps(examples.get(name, {})))
        for path in places(values):
            for new in (values, None, {"no such name": None}, ["x"], 0, -1, 0.5, "none", "  "):
                changed = replaced(values, path, new)
                assert validator.is_valid(changed) == (json_schema_kit.check(changed, document) == []), (path, new)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_keep_the_schema(policy: Policy) -> None:
    assert json_schema_kit.check(json.loads(policy.to_json()), DOCUMENTS["policy"]) == []


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_machines_that_ship_keep_the_schema(path: Path) -> None:
    assert json_schema_kit.check(read_machine_object(path), DOCUMENTS["machine"]) == []


def test_suites_keep_the_schema_of_arguments() -> None:
    arguments = DOCUMENTS["bench"]["$defs"]["Arguments"]
    for suite in read_suites().values():
        for values in suite.runs:
            wrong = json_schema_kit.complaints(values, {**arguments, "required": []}, DOCUMENTS["bench"])
            assert list(wrong) == []


def read_policy(values: Any) -> None:
    Policy.from_mapping(values)


def read_machine(values: Any) -> None:
    if values["format"] == NOMINAL_FORMAT:
        NominalFacts.from_mapping(values, "m.json")
    else:
        Machine.from_mapping(values, "m.json")


POLICY_VALUES = json.loads(POLICIES[1].to_json())
MEASURED_VALUES = plain_machine().to_mapping()
NOMINAL_VALUES = read_machine_object(next(path for path in MACHINES if path.name == "t4-gcp.json"))


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        pytest.param("policy", POLICY_VALUES, read_policy, id="policy"),
        pytest.param("machine", MEASURED_VALUES, read_machine, id="measured"),
        pytest.param("machine", NOMINAL_VALUES, read_machine, id="nominal"),
    ],
)
@given(st.data())
def test_what_is_read_keeps_the_schema(name: str, values: Any, read: Any, data: st.DataObject) -> None:
    values = json.loads(json.dumps(values))
    path = data.draw(st.sampled_from(places(values)[1:]))
    changed = replaced(values, path, data.draw(jsons))
    try:
        read(changed)
    except PolicyError:
        return
    assert json_schema_kit.check(changed, DOCUMENTS[name]) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [("policy", POLICY_VALUES), ("machine", MEASURED_VALUES), ("machine", NOMINAL_VALUES)],
    ids=["policy", "measured", "nominal"],
)
def test_what_is_wrong_breaks_the_schema(name: str, values: Any) -> None:
    values = json.loads(json.dumps(values))
    assert broken(values, DOCUMENTS[name]) == 2 * len(places(values)[1:]) - (1 if values == MEASURED_VALUES else 0)


def test_what_generate_prints_keeps_the_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain_machine().write(tmp_path / "machine.json")
    job = [
        "generate",
        "--model",
        "demo",
        "--max-new-tokens",
        "3",
        "--json",
        "--percent",
        "50",
        "50",
        "0",
        "50",
        "100",
        "0",
        "--machine",
    ]
    job.append(str(tmp_path / "machine.json"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [5, 6], "id": "a"}\n{"prompt": "King", "id": 7}\n')
    (texts,) = printed(capsys, *job, "--prompt", "King", "--logprobs", "2", "--disk-dir", str(tmp_path))
    (ids,) = printed(capsys, *job, "--input", str(tmp_path / "prompts.jsonl"), "--no-overlap")
    for found in (texts, ids):
        assert json_schema_kit.check(found, DOCUMENTS["generate"]) == []
        assert found["predicted"] is not None
        for name in found:
            assert json_schema_kit.check({key: found[key] for key in found if key != name}, DOCUMENTS["generate"])
    assert texts["outputs"][0]["logprobs"][0]["top"]
    assert {"id": [output["id"] for output in ids["outputs"]]} == {"id": ["a", 7]}


def test_what_plan_prints_and_writes_keeps_the_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = ("--prompt-len", "32", "--gen-len", "8", "--rows", "16")
    job = ("plan", "--model", "125m", "--machine", "t4-gcp", *sizes, "--json")
    prices = ("--price-per-hour", "1", "--disk-tbw", "100", "--quantize-weights", "int4")
    (free,) = printed(capsys, *job, "-o", str(tmp_path / "plan.json"))
    (priced,) = printed(capsys, *job, *prices, "--device-mem-gib", "1", "--host-mem-gib", "0.5")
    for found in (free, priced, json.loads((tmp_path / "plan.json").read_text())):
        assert json_schema_kit.check(found, DOCUMENTS["plan"]) == []
        assert json_schema_kit.check(found["policy"], DOCUMENTS["policy"]) == []
        assert "wanted" in found
    assert "cost_per_million_tokens" in priced


def test_what_bench_prints_keeps_the_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (found,) = printed(capsys, "bench", "--suite", "tiny", "--json")
    assert json_schema_kit.check(found, DOCUMENTS["bench"]) == []
    known = set(DOCUMENTS["bench"]["$defs"]["Benchmark"]["properties"])
    assert set(found) == known - {"baseline"}
    (tmp_path / "before.json").write_text(json.dumps(found))
    baseline = str(tmp_path / "before.json")
    (compared,) = printed(capsys, "bench", "--suite", "tiny", "--json", "--repeat", "2", "--baseline", baseline)
    assert json_schema_kit.check(compared, DOCUMENTS["bench"]) == []
    assert set(compared) == known


def test_what_is_printed_of_rows_that_differ_keeps_the_schemas(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lengths = tmp_path / "lengths.jsonl"
    lengths.write_text('{"prompt_tokens": 9, "new_tokens": 2}\n{"prompt_tokens": 5, "new_tokens": 3}\n')
    (found,) = printed(capsys, "bench", "--model", "tiny", "--lengths", str(lengths), "--json")
    assert json_schema_kit.check(found, DOCUMENTS["bench"]) == []
    assert found["lengths"]["rows"] == 2
    job = ("plan", "--model", "125m", "--machine", "t4-gcp", "--quantize-weights", "int4", "--groups", "1")
    (planned,) = printed(capsys, *job, "--lengths", str(lengths), "--json")
    assert json_schema_kit.check(planned, DOCUMENTS["plan"]) == []
    assert planned["wanted"]["lengths"]["rows"] == 2


def test_an_interrupted_bench_keeps_the_schema_without_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flexref.bench.benchmark.Benchmark._warm_up", interrupt)
    assert run(command_group(COMMANDS), ["bench", "--suite", "tiny", "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert json_schema_kit.check(found, DOCUMENTS["bench"]) == []
    assert (found["runs"], "prefill_s" in found) == ([], False)


def test_the_log_of_a_batch_job_keeps_the_schema(tmp_path: Path) -> None:
    pace = JobPace()
    log = JsonLog(str(tmp_path / "log.jsonl"), pace)
    facts = JobFacts("small", "numpy", POLICIES[1], "in.jsonl", "out.jsonl", 10, rates={"disk->host": 1e9})
    by_link = {"disk->host": {"weights": 7}}
    state = JobState(
        12.5,
        12.0,
        lines_done=7,
        passes=3,
        link_bytes=by_link,
        link_s=by_link,
        timed_bytes=by_link,
        timed_copies=by_link,
        lane_busy_s={"disk_in": 1.5},
        held_bytes={"device": 5, "host": 6, "disk": 7},
        budget_bytes={"device": 50, "host": None, "disk": None},
    )
    for watcher in (pace, log):
        watcher.begin(facts)
        watcher.passed(JobState(11.0))
        watcher.happened(JobEvent(1.0, "warning", "slow", {"link": "disk->host", "share": 0.5, "left_s": None}))
        watcher.end(state, "done")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["type"] for line in lines] == ["begin", "state", "event", "state", "end"]
    for line in lines:
        assert json_schema_kit.check(line, DOCUMENTS["batch-log"]) == []
        assert broken(line, DOCUMENTS["batch-log"]) >= len(line)


def test_a_conformance_result_keeps_its_schema_and_a_changed_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hypothesis")
    call = ("conformance", "--backend", "numpy", "--clause", "norm_is_the_norm", "--examples", "2", "--json")
    (result,) = printed(capsys, *call)
    assert json_schema_kit.check(result, DOCUMENTS["conformance"]) == []
    assert broken(result, DOCUMENTS["conformance"]) > 50
