"""Where things lie changes nothing but the traffic: same tokens and logits, budgets kept to the byte."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.sampling.settings import SamplingSettings
from flexref.testing import strategies as own

GIB = 1 << 30
STORED = st.sampled_from(
    [("none", "float32"), ("none", "float16"), ("int4", "float16"), ("int4", "float32"), ("int8", "float16")]
)
HOME = Policy(weights=Shares(), cache=Shares(), activations=Shares())


@dataclass
class Run:
    """What one run gave: token ids by row, and the logits of every (row, step)."""

    token_ids: list[list[int]]
    stats: Any
    logits: dict[tuple[int, int], npt.NDArray[np.float32]] = field(default_factory=dict)


def run(path: str, rows: list[list[int]], policy: Policy | None, request: Request, **options: Any) -> Run:
    logits: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def keep(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        keys = zip(numbers.tolist(), steps.tolist(), strict=True)
        logits.update(dict(zip(keys, values, strict=True)))

    if options.get("backend", "numpy") == "numpy":
        options.setdefault("scratch_bytes", 1 << 16)
    with load(path, policy=policy, **options) as engine:
        generation = engine.generate(rows, request, on_logits=keep)
    return Run([output.token_ids for output in generation.outputs], generation.stats, logits)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[ModelSpec, list[list[int]], Request]:
    spec = draw(own.specs())
    rows = draw(own.token_rows(spec.vocabulary))
    temperature = draw(st.sampled_from([0.0, 0.9]))
    sampling = SamplingSettings(temperature=temperature, top_k=draw(st.sampled_from([0, 5])), seed=7)
    return spec, rows, Request(draw(st.integers(1, 5)), sampling, ignore_eos=draw(st.booleans()))


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs, on every port
@given(job=jobs(), stored=STORED, policy=own.policies(), two=st.booleans())
def test_tokens_and_logits_are_bit_identical_for_every_placement(
    model_file: Any,
    computing_port: str,
    job: tuple[ModelSpec, list[list[int]], Request],
    stored: tuple[str, str],
    policy: Policy,
    two: bool,
) -> None:
    spec, rows, request = job
    path = model_file(spec, *stored)
    if computing_port != "numpy":  # elsewhere attention on the host is another place of computing
        policy = policy.changed(attention_on="device", host_attention_share=1.0)
    at_home = HOME.changed(
        rows_per_group=policy.rows_per_group,
        groups_per_block=1 if two else 3,
        overlap=False,
        cache_scheme=policy.cache_scheme,
        cache_group_size=policy.cache_group_size,
    )
    found = run(path, rows, policy, request, backend=computing_port)
    if not found.stats.row_invariant:  # the port promises that for rows in one order and company alone
        policy = policy.changed(cache=own.one_home(policy.cache))
        at_home = at_home.changed(groups_per_block=policy.groups_per_block)
        found = run(path, rows, policy, request, backend=computing_port)
    expected = run(path, rows, at_home, request, backend=computing_port)
    assert found.token_ids == expected.token_ids
    assert found.logits.keys() == expected.logits.keys()
    for key, logits in expected.logits.items():
        np.testing.assert_array_equal(found.logits[key], logits, err_msg=f"row and step {key}")


@settings(max_examples=settings.default.max_examples // 2)  # each example is several whole jobs
@given(jobs(), STORED, own.policies())
def test_budgets_are_kept_to_the_byte_and_one_byte_less_is_refused(
    model_file: Any,
    counting: Any,
    job: tuple[ModelSpec, list[list[int]], Request],
    stored: tuple[str, str],
    policy: Policy,
) -> None:
    spec, rows, request = job
    path = model_file(spec, *stored)
    port = counting()
    first = run(path, rows, policy, request, backend=port)
    scratch = port.caps.scratch_bytes
    peak = first.stats.peak_bytes
    assert peak["device"] == port.peak["device"] + scratch
    assert peak["host"] == port.peak["host"]
    assert not +port.live, "what was taken was not given back"
    exact = {"device_mem_gib": peak["device"] / GIB, "host_mem_gib": peak["host"] / GIB}
    again = run(path, rows, policy, request, backend=counting(), **exact)
    assert again.token_ids == first.token_ids
    assert again.stats.peak_bytes == peak
    # Keeping expanded weights, then sharing them in a pass: a tighter budget can go without, block by block.
    refusal = None
    for _ in range(1 + 2 * again.stats.blocks):
        exact["device_mem_gib"] = (peak["device"] - 1) / GIB
        try:
            peak = run(path, rows, policy, request, backend=counting(), **exact).stats.peak_bytes
        except CapacityError as error:
            refusal = str(error)
            break
    assert refusal is not None
    assert "device memory is too small by" in refusal
    assert "\n" not in refusal


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs and a plan
@given(jobs(), STORED, st.floats(0.05, 1.2), st.floats(0.05, 1.2), own.policies())
def test_a_policy_chosen_from_budgets_fits_them_or_is_refused_in_one_line(
    model_file: Any,
    job: tuple[ModelSpec, list[list[int]], Request],
    stored: tuple[str, str],
    device: float,
    host: float,
    base: Policy,
) -> None:
    spec, rows, request = job
    path = model_file(spec, *stored)
    kept = ("rows_per_group", "groups_per_block", "overlap", "attention_on", "cache_scheme", "cache_group_size")
    keep = {name: getattr(base, name) for name in kept}
    rich = run(path, rows, Policy(**keep), request)
    budgets = {
        "device_mem_gib": max(1, int(rich.stats.peak_bytes["device"] * device)) / GIB,
        "host_mem_gib": max(1, int(rich.stats.peak_bytes["device"] * host)) / GIB,
    }
    try:
        found = run(path, rows, None, request, keep=keep, **budgets)
    except CapacityError as error:
        assert "\n" not in str(error)  # noqa: PT017  it need not be raised
        return
    assert found.stats.peak_bytes["device"] <= budgets["device_mem_gib"] * GIB
    assert found.stats.peak_bytes["host"] <= budgets["host_mem_gib"] * GIB
    assert {name: getattr(found.stats.policy, name) for name in kept} == keep
    assert found.token_ids == rich.token_ids


def test_every_link_carries_what_the_placement_asks_for(model_file: Any) -> None:
    spec = ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64)
    path = model_file(spec)
    rows = [[5, 6, 7], [8]]
    everything = Policy.from_percent([0] * 6, rows_per_group=1, groups_per_block=2)
    stats = run(path, rows, everything, Request(3, ignore_eos=True)).stats
    new_records = (3 + 1 + 2 * 2) * 2 * 32 * 4 * 2  # new tokens, K and V, width, float32, layers
    past_records = ((3 + 4) + (1 + 2)) * 2 * 32 * 4 * 2
    assert stats.link_bytes["host->disk"]["cache"] == stats.link_bytes["device->host"]["cache"] == new_records
    assert stats.link_bytes["disk->host"]["cache"] == stats.link_bytes["host->device"]["cache"] == past_records
    states = (3 + 1 + 2 * 2) * 32 * 4 * 3  # tokens, width, float32, after the embedding and every layer
    for link in stats.link_bytes:
        assert stats.link_bytes[link]["activations"] == states
    home = run(path, rows, HOME.changed(rows_per_group=1, groups_per_block=2), Request(3, ignore_eos=True)).stats
    assert not any(home.link_bytes.values())


def test_a_wide_table_that_is_partly_on_the_device_is_counted_whole(model_file: Any) -> None:
    # Token rows come from the host, and ids go to the device for the tiles that are there: both at once.
    path = model_file(ModelSpec("wide", 600, 400, 8, 64, 1, 2, 8), dtype="float16")
    rows = [[5] * 300, [6] * 280]
    half = HOME.changed(weights=Shares(0.5, 0, 0.5), rows_per_group=2)
    found, expected = (run(path, rows, policy, Request(1)) for policy in (half, HOME.changed(rows_per_group=2)))
    assert found.token_ids == expected.token_ids
