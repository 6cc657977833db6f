"""A benchmark: suites that parse and fit, floors that follow from bytes and rates, reports that hide nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_dry import DryBackend
from flexref_numpy import NumpyBackend

from flexref.architecture.flops import decode_flops, prefill_flops
from flexref.architecture.published import PUBLISHED, size_named
from flexref.backend.capabilities import Description
from flexref.backend.compiling import CompileTime
from flexref.backend.protocol import Backend
from flexref.bench import rates
from flexref.bench.benchmark import Benchmark, weights_of
from flexref.bench.floor import cache_bytes_read, floors, weight_bytes_read
from flexref.bench.rates import Rates
from flexref.bench.report import Report
from flexref.bench.suites import Arguments, read_suites
from flexref.bench.workload import Workload, workload_of
from flexref.block.tracing.trace import Trace
from flexref.check.models import write_model
from flexref.engine.events import Event, WeightsLoaded
from flexref.engine.results import Stats
from flexref.errors import CapacityError, FlexrefError, PolicyError, PromptError, StorageError
from flexref.policy import Policy, Shares
from flexref.profile import environment as machine
from flexref.storage.random_weights import RandomFile, random_file
from flexref.storage.weightfile import WeightFile
from flexref.units import Tier

TINY = {"model": "tiny", "prompt_len": 12, "gen_len": 4, "rows": 6, "rows_per_group": 2, "groups": 2}
STREAMED = {**TINY, "percent": [0, 100, 0, 100, 0, 100]}
ROUND = Rates(10.0, 5.0, 100.0, 1000.0)


def run(values: dict[str, Any], **options: Any) -> Report:
    with Benchmark(Arguments.from_mapping(values, "the test"), lambda: NumpyBackend(1 << 16)) as benchmark:
        return benchmark.run(on_run=lambda number: None, **options)


def test_a_port_compiles_for_the_timed_block_while_weights_are_loaded() -> None:
    seen: list[str] = []

    class Rehearsing(CompileTime):
        def rehearse(self, play: Callable[[Backend], None]) -> None:
            seen.append("rehearsed")

    class Compiling(NumpyBackend):
        compiling = Rehearsing()

    def hear(event: Event) -> None:
        seen.append("loaded" if isinstance(event, WeightsLoaded) else "told")

    arguments = Arguments.from_mapping(TINY, "the test")
    with Benchmark(arguments, lambda: Compiling(1 << 16), hear) as benchmark:
        benchmark.run(on_run=lambda number: None)
    assert seen[:2] == ["rehearsed", "loaded"]


# Suites


def test_the_suites_are_the_named_cases_and_each_says_what_it_shows() -> None:
    suites = read_suites()
    cases = {f"case-{letter}" for letter in "abcde"} | {"case-d-host"}
    assert set(suites) == {"tiny", "on-device", "on-disk", "predictions", "predictions-numpy", *cases}
    assert all(suite.about for suite in suites.values())


@pytest.mark.parametrize("name", [*(f"case-{letter}" for letter in "abcde"), "case-d-host"])
def test_every_case_fits_a_device_of_16_gib_and_a_host_of_117(name: str) -> None:
    """Planned on the port that only counts, with the types and about the scratch of a GPU's."""
    for values in read_suites()[name].runs:
        arguments = replace(Arguments.from_mapping(values, name), host_mem_gib=117.0, link_gb_per_s=None)
        assert arguments.device_mem_gib == 16
        assert arguments.prompt_len == 512
        with Benchmark(arguments, lambda: DryBackend("float16", 256 << 20)) as benchmark:
            assert benchmark.policy.weights.disk == benchmark.policy.cache.disk == 0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rows": 3}, "lacks the field 'model'"),
        ({"model": "tiny", "row": 3}, "unknown field 'row'"),
        ({"model": "tiny", "rows": 0}, "rows must be a whole number of at least 1, found 0"),
        ({"model": "tiny", "rows": "3"}, "rows must be a whole number"),
        ({"model": "tiny", "rows": True}, "rows must be a whole number"),
        ({"model": "tiny", "rows": None}, "rows must be a whole number"),
        ({"model": "tiny", "gen_len": 1.5}, "gen_len must be a whole number"),
        ({"model": "", "rows": 1}, "model must be text"),
        ({"model": "tiny", "quantize_weights": True}, "quantize_weights must be one of int4, int8, found True"),
        ({"model": "tiny", "quantize_cache": 1}, "quantize_cache must be true or false"),
        ({"model": "tiny", "attention_on": "disk"}, "attention_on must be one of device, host"),
        ({"model": "tiny", "device_mem_gib": "16"}, "device_mem_gib must be a number"),
        ({"model": "tiny", "device_mem_gib": 10**400}, "device_mem_gib must be a number, found 1000"),
        ({"model": "tiny", "percent": [1, 2]}, "percent must be six numbers"),
        ({"model": "tiny", "percent": [0] * 6, "policy": "p.json"}, "percent and policy exclude each other"),
    ],
)
def test_a_suite_with_a_mistake_is_refused_in_one_line(tmp_path: Path, values: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "suites.json"
    path.write_text(json.dumps({"mine": {"about": "Wrong.", "runs": [{"model": "tiny"}, values]}}))
    with pytest.raises(PolicyError) as refused:
        read_suites(path)
    assert f"suite 'mine', run 2: {complaint}" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"mine": []}', '{"mine": {"about": "x", "runs": []}}', '{"m": {"runs": 1}}']
)
def test_a_file_that_holds_no_suites_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "suites.json"
    path.write_text(text)
    with pytest.raises(PolicyError):
        read_suites(path)
    with pytest.raises(StorageError, match="cannot read"):
        read_suites(tmp_path / "none.json")


# What is timed


@pytest.mark.parametrize("name", ["6.7b", "6.7B", "opt-6.7b", "OPT-6.7B"])
def test_a_size_is_known_by_any_spelling_and_its_weights_are_random(name: str) -> None:
    assert size_named(name) == PUBLISHED["opt-6.7b"]
    file = weights_of(Arguments(name, quantize_weights="int4", seed=3))
    assert isinstance(file, RandomFile)
    assert (file.scheme, file.dtype, file.seed) == ("int4", "float16", 3)


def test_a_file_brings_its_own_weights_unless_random_ones_are_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "model.h5")
    write_model(Path(path), size_of("tiny"))
    own, random = weights_of(Arguments(path)), weights_of(Arguments(path, random_weights=True))
    assert not isinstance(own, RandomFile)
    assert isinstance(random, RandomFile)
    assert random.spec == own.spec
    assert random.dtype == own.dtype == "float32"
    for scheme, other in (("int4", "int8"), ("int8", "int4")):
        assert weights_of(Arguments(path, random_weights=True, quantize_weights=scheme)).scheme == scheme
        with pytest.raises(PolicyError, match=f"holds float32 weights: convert .* --quantize {scheme}"):
            weights_of(Arguments(path, quantize_weights=scheme))
        write_model(tmp_path / "quantized.h5", size_of("tiny"), scheme=scheme)
        quantized = str(tmp_path / "quantized.h5")
        assert weights_of(Arguments(quantized, quantize_weights=scheme)).scheme == scheme
        with pytest.raises(PolicyError, match=f"holds {scheme} weights: .* --quantize {other}"):
            weights_of(Arguments(quantized, quantize_weights=other))
    assert weights_of(Arguments("demo")).spec.vocabulary == 8192


def size_of(name: str) -> Any:
    spec = size_named(name)
    assert spec is not None
    return spec


def test_what_is_neither_a_file_nor_a_size_is_refused_with_the_sizes() -> None:
    with pytest.raises(StorageError, match=r"'6.8b' is neither a weight file nor the size .*opt-6.7b"):
        weights_of(Arguments("6.8b"))


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"prompt_len": 250, "gen_len": 8}, PromptError, "250 .* 8 tokens: the model has 256 positions"),
        ({"device_mem_gib": 0.0001}, CapacityError, "device memory is too small"),
        ({"percent": [0, 50, 0, 100, 0, 100]}, PolicyError, "would lie on disk"),
        ({"backend": "abacus"}, FlexrefError, "abacus"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_measured(
    change: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint) as refused:
        Benchmark(Arguments.from_mapping({**STREAMED, **change}, "the test"))
    assert "\n" not in str(refused.value)


def test_the_policy_is_the_one_that_is_asked_for_or_one_that_keeps_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(Policy(weights=Shares(0.5, 0.5, 0.0), rows_per_group=3).to_json())
    for values, weights in (
        ({**TINY, "policy": str(path)}, Shares(0.5, 0.5, 0.0)),
        ({**TINY, "percent": [25, 75, 0, 100, 100, 0]}, Shares(0.25, 0.75, 0.0)),
        (TINY, Shares()),
    ):
        asked = {**values, "quantize_cache": True, "overlap": False, "row_invariant": False}
        with Benchmark(Arguments.from_mapping(asked, "the test")) as benchmark:
            policy = benchmark.policy
        assert policy.weights == weights
        assert (policy.rows_per_group, policy.groups_per_block) == (2, 2)
        assert (policy.cache_scheme, policy.overlap, policy.row_invariant) == ("int4", False, False)


# Floors


def account(file: WeightFile, policy: Policy, **fields: Any) -> Stats:
    stats = Stats("numpy", policy, blocks=1, **fields)
    stats.placement = {"cache": {"real": {"device": 1.0, "host": 0.0, "disk": 0.0}}}
    return stats


def test_a_floor_is_the_slowest_of_what_a_phase_must_move_and_compute() -> None:
    file, work = random_file(size_of("tiny")), Workload.alike(rows=2, prompt_tokens=3, new_tokens=3)
    stats = account(
        file,
        Policy(),
        link_bytes={"host->device": {"weights": 70, "cache": 30}, "device->host": {"cache": 20}, "disk->host": {}},
        prefill_link_bytes={"host->device": {"weights": 20}},
    )
    prefill, decode = floors(file, work, stats, replace(ROUND, device_memory_bytes_per_s=1e12), "float32")
    spec = file.spec
    assert prefill.terms_s["host->device"] == 20 / 10
    assert prefill.terms_s["products"] == 2 * prefill_flops(spec, 3) / 1000
    assert decode.terms_s["host->device"] == 80 / 10
    assert decode.terms_s["device->host"] == 20 / 5
    assert decode.terms_s["products"] == 2 * (decode_flops(spec, 4) + decode_flops(spec, 5)) / 1000
    assert decode.seconds == max(decode.terms_s.values())
    assert decode.limit == "products"


def test_device_memory_is_read_once_per_pass_for_weights_and_records() -> None:
    file, work = random_file(size_of("tiny"), scheme="int4"), Workload.alike(rows=2, prompt_tokens=3, new_tokens=3)
    policy = Policy(cache_scheme="int4")
    prefill, decode = floors(file, work, account(file, policy), ROUND, "float16")
    weights, cache = weight_bytes_read(file), cache_bytes_read(file.spec, policy, work, "float16")
    tables = [tensor for name, tensor in file.tensors.items() if name.startswith("embed/")]
    assert weights == file.nbytes - sum(tensor.nbytes for tensor in tables)
    record = 2 * (4 * 16 + 4 * 4)  # 4 heads of 32 codes, and one pair of float16 each
    assert cache == 4 * 2 * (3 + 4) * record
    assert prefill.terms_s["device memory"] == weights / 100
    assert decode.terms_s["device memory"] == (2 * weights + cache) / 100
    away = account(file, policy.changed(attention_on="host", cache=Shares(0.5, 0.5, 0)))
    far = floors(file, work, away, ROUND, "float16")[1]
    assert far.terms_s["device memory"] == (2 * weights + cache / 2) / 100


def test_the_floor_of_case_b_is_that_of_its_weights_and_cache_in_device_memory() -> None:
    """What the bandwidth of an H100's memory allows, worked out by hand: about 3 ms for a decode step."""
    (values,) = read_suites()["case-b"].runs
    arguments = Arguments.from_mapping(values, "case-b")
    file, policy = weights_of(arguments), Policy(cache_scheme="int4", rows_per_group=64)
    work = workload_of(arguments)
    h100 = Rates(54.7e9, 55e9, 3.0e12, 762e12)
    _, decode = floors(file, work, account(file, policy), h100, "float16")
    assert decode.limit == "device memory"
    assert 0.002 < decode.seconds / (values["gen_len"] - 1) < 0.004


def test_rates_are_measured_and_their_memory_is_given_back(counting: Any) -> None:
    backend = counting()
    found = rates.measure(backend)
    assert min(found.to_device_bytes_per_s, found.from_device_bytes_per_s, found.device_memory_bytes_per_s) > 1e6
    assert found.product_flops_per_s > 1e6
    assert found.from_disk_bytes_per_s is found.to_spill_bytes_per_s is None
    assert not +backend.live
    backend.close()


# Reports


def test_a_report_has_every_figure_by_name_and_they_agree() -> None:
    report = run({**STREAMED, "repeat": 3})
    found = json.loads(json.dumps(report.to_json()))
    assert len(found["runs"]) == 3
    assert found["prefill_s"] == sorted(each["prefill_s"] for each in found["runs"])[1]
    assert found["decode_s"] == sorted(each["decode_s"] for each in found["runs"])[1]
    assert found["generated_tokens"] == 6 * 4
    assert found["tokens_per_s"] == 24 / (found["prefill_s"] + found["decode_s"])
    assert found["decode_step_s"] == found["decode_s"] / (2 * 3)  # two blocks, of two groups and of one
    assert found["floor_s"] == found["prefill_floor_s"] + found["decode_floor_s"]
    assert found["floor_ratio"] == (found["prefill_s"] + found["decode_s"]) / found["floor_s"]
    assert found["decode_step_floor_s"] == found["decode_floor_s"] / 6
    assert found["prefill_floor_s"] == max(found["prefill_floor_terms_s"].values())
    for link, kinds in found["link_bytes"].items():
        for kind, nbytes in kinds.items():
            prefill = found["prefill_link_bytes"].get(link, {}).get(kind, 0)
            assert prefill + found["decode_link_bytes"][link][kind] == nbytes
            assert 0 <= prefill <= nbytes
    assert found["peak_bytes"]["host"] > weight_bytes_read(report.file)
    assert found["weights"] == "random"
    assert found["cut_short"] is None
    assert {"flexref", "numpy", "python"} <= set(found["versions"])
    assert {"cpu", "cpu_cores", "memory_bytes", "gpu", "link_gb_per_s"} == set(found["machine"])
    assert found["arguments"]["rows_per_group"] == 2


def test_every_run_is_a_full_one_on_weights_that_were_brought_home_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    before: list[int] = []
    arguments = Arguments.from_mapping({**STREAMED, "repeat": 2}, "the test")

    def count(event: Event) -> None:
        assert isinstance(event, WeightsLoaded)
        loaded.append(event.loaded_bytes)
        assert event.loaded_bytes <= event.total_bytes

    with Benchmark(arguments, lambda: NumpyBackend(1 << 16), count) as benchmark:
        report = benchmark.run(on_run=lambda number: before.append(len(loaded)))
        assert before == [len(loaded), len(loaded)]
        assert loaded == sorted(set(loaded))
        assert loaded[-1] >= benchmark.file.nbytes
        assert "weights" in benchmark.engine.session.arenas[Tier.HOST].holders
    assert [stats.generated_tokens for stats in report.runs] == [24, 24]
    assert loaded[-1] < 1.1 * benchmark.file.nbytes


def test_one_new_token_has_no_decode_step() -> None:
    found = run({**TINY, "gen_len": 1}).to_json()
    assert found["decode_step_s"] is found["decode_step_floor_s"] is None
    assert found["tokens_per_s"] > 0


def test_a_job_that_uses_the_disk_has_the_disks_rates(tmp_path: Path) -> None:
    write_model(tmp_path / "model.h5", size_of("tiny"))
    nowhere = {**TINY, "model": str(tmp_path / "model.h5"), "percent": [0] * 6, "disk_dir": str(tmp_path)}
    found = run(nowhere).to_json()
    assert found["weights"] == str(tmp_path / "model.h5")
    assert {"weight file", "disk->host", "host->disk"} <= set(found["decode_floor_terms_s"])
    unused = {name for name, rate in found["rates"].items() if rate is None}
    assert all("host" in name for name in unused), unused  # attention on the host is not asked for
    assert min(rate for rate in found["rates"].values() if rate is not None) > 0
    only_weights = run({**nowhere, "percent": [0, 0, 100, 0, 100, 0]}).to_json()
    assert only_weights["rates"]["from_disk_bytes_per_s"] > 0
    assert only_weights["rates"]["to_spill_bytes_per_s"] is None


def test_a_trace_tells_how_busy_each_lane_was_in_the_last_run(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace:
        report = run({**STREAMED, "repeat": 2}, trace=trace)
    events = json.loads((tmp_path / "trace.json").read_text())
    visits = [event["args"] for event in events if event.get("cat") == "compute"]
    assert {(visit["block"], visit["pass"]) for visit in visits} == {(0, number) for number in range(2 * 4)}
    assert {"compute", "weights_in"} <= set(report.to_json()["runs"][0]["lane_busy"])
    assert run(STREAMED).to_json()["runs"][0]["lane_busy"] == {}


class Interrupted(NumpyBackend):
    """Somebody presses Ctrl-C when so many tokens have been chosen."""

    left = 0

    def sample(self, *arguments: Any) -> Any:
        Interrupted.left -= 1
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        return super().sample(*arguments)


@pytest.mark.parametrize("complete", [0, 1])
def test_an_interrupted_run_is_reported_as_such_and_gives_no_figures(complete: int) -> None:
    Interrupted.left = 0

    def interrupt(number: int) -> None:
        Interrupted.left = 5 if number == complete + 1 else 0  # of 12: two groups and one, four passes each

    arguments = Arguments.from_mapping({**STREAMED, "repeat": 3}, "the test")
    with Benchmark(arguments, lambda: Interrupted(1 << 16)) as benchmark:
        report = benchmark.run(on_run=interrupt)
        how_far = benchmark.how_far()
    found = report.to_json()
    assert found["cut_short"].endswith(f", after {how_far}")
    assert len(found["runs"]) == complete
    assert f"interrupted in run {complete + 1} of 3, after " in found["cut_short"]
    assert ("prefill_s" in found) == ("floor_s" in found) == bool(complete)
    if complete:
        assert found["prefill_s"] == found["runs"][0]["prefill_s"]


def test_an_interrupt_before_the_first_run_says_what_it_interrupted() -> None:
    Interrupted.left = 2
    with Benchmark(Arguments.from_mapping(STREAMED, "the test"), lambda: Interrupted(1 << 16)) as benchmark:
        found = benchmark.run(on_run=lambda number: None).to_json()
    assert found["cut_short"].startswith("interrupted in warming up")
    assert found["runs"] == []


def test_the_machine_and_the_versions_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing, port = Description((), {}), Description(("Their device",), {"library": "1.2"})
    here = machine.machine(nothing)
    assert here["cpu"]
    assert here["memory_bytes"] > 1 << 28
    (tmp_path / "gpus" / "0").mkdir(parents=True)
    (tmp_path / "gpus" / "0" / "information").write_text("Model: \t\t Some GPU\nIRQ: 3\n")
    (tmp_path / "version").write_text("NVRM version: A Kernel Module  1.2.3\nGCC\n")
    monkeypatch.setattr(machine, "DRIVER_FOLDER", tmp_path)
    assert machine.machine(nothing)["gpu"] == ["Some GPU"]
    assert machine.machine(port)["gpu"] == ["Their device"]
    assert machine.versions(port) == {**machine.versions(nothing), "library": "1.2"}
    assert machine.versions(nothing)["driver"] == "A Kernel Module  1.2.3"
    monkeypatch.setattr(machine, "PROCESSOR_FILE", tmp_path / "none")
    assert machine.machine(nothing)["cpu"]
