"""Two runs are one job where nothing that can change an answer differs, wherever their files lie."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st
from recorder_kit import IDENTITY, Job

from flexref.architecture.published import size_named
from flexref.architecture.spec import ModelSpec
from flexref.batch_job import prepared
from flexref.batch_job.cluster.engine_server import EngineOpening
from flexref.batch_job.identity import Identity, arithmetic_facts, model_facts
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.prepared import JobSettings, Prepared
from flexref.errors import PolicyError, StorageError, WeightFileError
from flexref.policy import Asked, Policy, Shares
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import open_weight_file

VALUES = st.one_of(st.integers(-9, 9), st.floats(0, 1), st.text(max_size=2), st.lists(st.integers(0, 3), max_size=2))
FACTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3)
IDENTITIES = st.builds(Identity, FACTS, FACTS, FACTS, FACTS)

SPEC = ModelSpec("tiny", 50, 48, 16, 16, 2, 2, 32)


@given(IDENTITIES, IDENTITIES)
def test_differences_are_told_where_there_are_some_and_only_there(begun: Identity, now: Identity) -> None:
    assert begun.differences(begun) == []
    assert (now.differences(begun) == []) == (now == begun)
    assert now.differences(begun, arithmetic=False) == replace(now, arithmetic=begun.arithmetic).differences(begun)
    assert Identity.of(begun.as_json()) == begun


def test_an_identity_is_the_same_when_it_comes_out_of_a_journal(tmp_path: Path) -> None:
    job = Job(tmp_path)
    given_in_tuples = replace(IDENTITY, settings={"stop": ("a", "b"), "top_p": 0.1, "seed": None})
    job.open(given_in_tuples).close()
    job.open(given_in_tuples).close()


def test_a_long_value_is_shown_by_its_beginning() -> None:
    (said,) = Identity({}, {}, {"stop": "y" * 99}, {}).differences(Identity({}, {}, {"stop": None}, {}))
    assert said == f"setting stop: the job was begun with none, now it is {'y' * 60}..."


def test_a_model_is_known_by_what_is_in_its_file(tmp_path: Path, model_file: Callable[..., str]) -> None:
    first, second = (model_file(SPEC, seed=seed) for seed in (0, 1))
    shutil.copy(first, tmp_path / "moved.h5")
    facts = model_facts(open_weight_file(first))
    assert model_facts(open_weight_file(str(tmp_path / "moved.h5"))) == facts
    assert model_facts(open_weight_file(second)) != facts
    file = open_weight_file(str(tmp_path / "moved.h5"))
    (tmp_path / "moved.h5").write_bytes(b"else")
    with pytest.raises(WeightFileError, match="is not a flexref weight file"):
        model_facts(file)
    (tmp_path / "moved.h5").unlink()
    with pytest.raises(StorageError, match=r"cannot read .*moved\.h5: No such file"):
        model_facts(file)


def test_a_random_model_is_known_by_its_seed_and_sizes() -> None:
    small, large = size_named("125m"), size_named("1.3b")
    facts = [model_facts(random_file(spec, seed=seed)) for spec, seed in ((small, 0), (small, 1), (large, 0))]
    assert facts[0] == model_facts(random_file(small, seed=0))
    assert facts[0] not in facts[1:]


def test_where_no_device_computes_the_kernels_of_the_processor_are_part_of_the_arithmetic() -> None:
    port = NumpyBackend()
    try:
        facts = arithmetic_facts(port)
    finally:
        port.close()
    assert facts["backend"] == "numpy"
    assert facts["version of numpy"]
    assert "BLAS kernels" in facts


@pytest.mark.parametrize(
    "other",
    [
        {"asked": Asked(Policy(cache_scheme="int4", cache_group_size=32), {}, {})},
        {"asked": Asked(None, {"attention_on": "host"}, {})},
        {"asked": Asked(None, {"row_invariant": False}, {})},
        {"options": {"scratch_bytes": 1 << 16}},
        {"defaults": Defaults(seed=1)},
        {"backend": "dry"},
    ],
)
def test_every_setting_that_can_change_a_bit_makes_another_job(other: dict[str, Any]) -> None:
    settings = JobSettings("demo", asked=Asked(Policy(cache_scheme="int4"), {}, {}))
    assert replace(settings, **other).identity != settings.identity


def test_where_rows_lie_and_which_device_computes_make_no_other_job() -> None:
    given = Asked(Policy(rows_per_group=3, cache=Shares(0, 1), overlap=False, cache_group_size=32), {}, {})
    assert JobSettings("demo", asked=given, options={"device": 1}).identity == JobSettings("demo").identity


def test_no_policy_of_a_job_computes_attention_elsewhere_than_another() -> None:
    """One that is chosen anew, for less memory or fewer lines, would have other bits on some ports."""
    assert Prepared(JobSettings("demo")).settling.keep == {"attention_on": "device"}
    on_host = JobSettings("demo", asked=Asked(None, {"attention_on": "host", "overlap": True}, {}))
    assert Prepared(on_host).settling.keep == {"attention_on": "host", "overlap": True}


ON_HOST = {"attention_on": "host"}


@pytest.mark.parametrize("one_memory", [True, False])
@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (Asked(None, ON_HOST, {}), True),
        (Asked(Policy(cache=Shares(0, 1), attention_on="host"), {}, {}), True),
        (Asked(Policy(cache=Shares(1, 0), attention_on="host"), {}, {}), False),
        (Asked(None, {**ON_HOST, "row_invariant": False}, {}), False),
        (Asked(None, {**ON_HOST, "host_attention_share": 0.0}, {}), False),
        (Asked(None, {}, {}), False),
    ],
)
def test_a_job_whose_bytes_an_interruption_may_change_is_refused_unless_that_is_accepted(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, refused: bool, one_memory: bool
) -> None:
    """Before a file is written, and by every worker. Where one processor does both there is nothing to refuse."""
    port = NumpyBackend()
    port.caps = replace(port.caps, one_memory=one_memory)
    monkeypatch.setattr(prepared, "create", lambda *_, **__: port)
    settings = JobSettings("demo", backend=port, asked=asked)  # type: ignore[arg-type]
    opening = EngineOpening(settings, as_json=False)
    if refused and not one_memory:
        with pytest.raises(PolicyError, match=r"^numpy rounds otherwise .* accept that \(--no-row-invariant\)$"):
            _ = Prepared(settings).port
        with pytest.raises(PolicyError, match=r"^numpy rounds otherwise"):
            opening()
    else:
        assert Prepared(settings).port.arithmetic["backend"] == "numpy"
        opening().close()


def test_what_else_is_loaded_is_no_other_arithmetic() -> None:
    """In a process of its own: a run that has planned has scipy, and its BLAS, and one that resumes it may have not."""
    script = """
import sys
from flexref_numpy import NumpyBackend
from flexref.batch_job.identity import arithmetic_facts
before = arithmetic_facts(NumpyBackend())
assert "scipy.linalg" not in sys.modules
import scipy.linalg
assert arithmetic_facts(NumpyBackend()) == before, (before, arithmetic_facts(NumpyBackend()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
