"""The whole engine on the emulated device, which does its work as late as it may: a missing wait changes a result."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.operators.on_host import INSTALL, is_possible
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Findings
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import PolicyError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.testing import strategies as own

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

STORED = st.sampled_from([("none", "float32"), ("none", "float16"), ("int4", "float16")])

Logits = dict[tuple[int, int], npt.NDArray[np.float32]]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[ModelSpec, list[list[int]]]:
    spec = draw(own.specs(layers=2))
    return spec, draw(own.token_rows(spec.vocabulary))


def run(
    path: Path, rows: list[list[int]], policy: Policy, late: bool, graphs: bool = True
) -> tuple[list[list[int]], Logits]:
    """Token ids by row, and the logits of every (row, pass)."""
    logits: Logits = {}

    def keep(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        keys = zip(numbers.tolist(), steps.tolist(), strict=True)
        logits.update(dict(zip(keys, values, strict=True)))

    options: dict[str, Any] = {"capability": (9, 0), "multiprocessors": 8, "late": late}
    cuda = EmulatedCuda(**options)
    port = CupyBackend(cuda=cuda, piece_bytes=4096 if late else 1 << 20)
    with load(path, policy=policy, backend=port, graphs=graphs) as engine:
        outputs = engine.generate(rows, Request(3, ignore_eos=True), on_logits=keep).outputs
    assert not cuda.pinned()
    assert {stream for stream, nbytes in cuda.pageable.items() if nbytes} <= {cuda.compute_stream}, "a lane had to wait"
    return [output.token_ids for output in outputs], logits


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs
@given(jobs(), STORED, own.policies(attention_on="device"))
def test_tokens_and_logits_are_those_of_direct_calls_with_everything_at_home(
    job: tuple[ModelSpec, list[list[int]]], stored: tuple[str, str], policy: Policy
) -> None:
    spec, rows = job
    home = Policy(
        rows_per_group=policy.rows_per_group,
        groups_per_block=1,
        overlap=False,
        cache_scheme=policy.cache_scheme,
        cache_group_size=policy.cache_group_size,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        write_model(path, spec, scheme=stored[0], dtype=stored[1])
        tokens, expected = run(path, rows, home, late=False, graphs=False)
        found_tokens, found = run(path, rows, policy, late=True)
    assert found_tokens == tokens
    assert found.keys() == expected.keys()
    for key, logits in expected.items():
        np.testing.assert_array_equal(found[key], logits, err_msg=f"row and pass {key}")


ON_HOST = own.policies(attention_on="host", cache=Shares(0.3, 0.5, 0.2))


@pytest.mark.skipif(not is_possible(), reason="numba is not installed")
@settings(max_examples=5)  # three runs each
@given(jobs(), STORED, ON_HOST)
def test_with_attention_on_the_host_bits_depend_on_the_places_of_rows_alone(
    job: tuple[ModelSpec, list[list[int]]], stored: tuple[str, str], policy: Policy
) -> None:
    """Not on what goes on beside it: lanes that work late, one thing after another, operators looked at one by one."""
    spec, rows = job
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        write_model(path, spec, scheme=stored[0], dtype=stored[1])
        expected = run(path, rows, policy.changed(overlap=True), late=True)
        found = run(path, rows, policy.changed(overlap=False), late=False)
        findings = Findings()
        with load(path, policy=policy, backend=CheckedBackend(CupyBackend(cuda=EmulatedCuda()), findings)) as engine:
            checked = engine.generate(rows, Request(3, ignore_eos=True), on_visit=findings.on_visit).outputs
    worst = findings.worst
    assert worst is not None
    assert worst.within, str(worst)
    assert found[0] == expected[0] == [output.token_ids for output in checked]
    assert found[1].keys() == expected[1].keys()
    for key, logits in expected[1].items():
        np.testing.assert_array_equal(found[1][key], logits, err_msg=f"row and pass {key}")


def test_without_numba_attention_on_the_host_is_refused_and_says_what_to_install(model_file: Any) -> None:
    port = CupyBackend(cuda=EmulatedCuda(), attends_on_host=False)
    policy = Policy(cache=Shares(0, 1, 0), attention_on="host")
    with pytest.raises(PolicyError) as refused:
        load(model_file(LONG), policy=policy, backend=port)
    port.close()
    assert str(refused.value) == f"backend cupy cannot compute attention on the host: {INSTALL}"


LONG = ModelSpec("long", 300, 400, 8, 8, 1, 1, 8)
"""Tiles of the head, and rows whose tokens are more than there are logits of at a time."""


@st.composite
def scored(draw: st.DrawFn) -> tuple[ModelSpec, list[ScoredRow]]:
    if draw(st.sampled_from((False, False, True))):
        lengths = draw(st.lists(st.integers(100, 300), min_size=1, max_size=3))
        return LONG, [ScoredRow(tuple((7 * token) % 300 for token in range(length))) for length in lengths]
    spec = draw(own.specs(layers=2))
    rows = draw(own.token_rows(spec.vocabulary, shortest=2))
    return spec, [ScoredRow(tuple(row), draw(st.integers(1, len(row) - 1))) for row in rows]


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs
@given(scored(), STORED, own.policies(attention_on="device"))
def test_scores_are_those_of_a_run_with_everything_at_home(
    job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], policy: Policy
) -> None:
    spec, rows = job
    home = Policy(rows_per_group=policy.rows_per_group, overlap=False, cache_scheme=policy.cache_scheme)
    home = home.changed(cache_group_size=policy.cache_group_size)
    found = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        write_model(path, spec, scheme=stored[0], dtype=stored[1])
        for place, late in ((home, False), (policy, True)):
            device = EmulatedCuda(capability=(9, 0), multiprocessors=8, late=late)
            with load(path, policy=place, backend=CupyBackend(cuda=device)) as engine:
                found.append(engine.score(rows, keep_logits=True).rows)
    for number, (expected, scores) in enumerate(zip(*found, strict=True)):
        np.testing.assert_array_equal(scores.logits, expected.logits, err_msg=f"row {number}")
        np.testing.assert_array_equal(scores.logprobs, expected.logprobs, err_msg=f"row {number}")
