"""A simulated job: bytes and peaks are those of a real run, seconds follow from the machine alone."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.rows import AlikeRows, RowLengths
from flexref.block.tracing.trace import Trace
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.machine.machine import HostSeconds, Machine
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.storage.random_weights import random_file
from flexref.testing import strategies as own
from flexref.text.prompts import Prompt
from flexref.units import Tier

SCRATCH_BYTES = 1 << 16
NO_BUDGETS = dict.fromkeys(Tier)
SPEC = ModelSpec("small", 512, 128, 64, 64, 3, 4, 256)
HOME, AWAY = Shares(), Shares(0, 1, 0)


def like_numpy(machine: Machine | None = None) -> Machine:
    """A machine with the capabilities of the numpy port of these tests."""
    machine = machine or plain_machine(asynchronous=False)
    port = machine.port
    return machine.changed(
        port=type(port)(
            "numpy", "float32", port.asynchronous, port.overlaps_copies, port.attends_on_host, SCRATCH_BYTES, 0
        )
    )


def rows_are_alike(engine: Engine, policy: Policy) -> bool:
    """Whether all rows of the token table are read from disk or none is: else their bytes depend on the tokens."""
    file = engine.file
    ids = np.arange(file.spec.vocabulary, dtype=np.int32)
    reads = engine.session.weights_for(policy).table_reads(ids, range(0, len(ids), file.tile_rows))
    return sum(len(read.tokens) for read in reads if read.from_disk) in (0, len(ids))


def without_zeros(table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {link: {kind: nbytes for kind, nbytes in kinds.items() if nbytes} for link, kinds in table.items()}


@contextmanager
def written_bytes() -> Iterator[list[int]]:
    """How much each call wrote that writes to a spill file, meanwhile."""
    found: list[int] = []
    write = os.pwritev

    def counted(*arguments: Any) -> int:
        count = write(*arguments)
        found.append(count)
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", counted)
        yield found


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job
@given(
    spec=own.specs(),
    stored=st.sampled_from([("none", "float32"), ("none", "float16"), ("int4", "float16")]),
    policy=own.policies(),
    rows=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12),
    chunk=st.none() | st.integers(1, 6),
)
def test_bytes_over_links_and_peaks_are_those_of_a_real_run(
    model_file: Any,
    spec: ModelSpec,
    stored: tuple[str, str],
    policy: Policy,
    rows: list[tuple[int, int]],
    chunk: int | None,
) -> None:
    """Rows of different lengths come and go in different passes, and read their prompts in pieces."""
    path, policy = model_file(spec, *stored), policy.changed(prompt_chunk_tokens=chunk)
    rows = [(min(prompt, spec.positions - 1), new) for prompt, new in rows]
    asked = [
        Prompt(
            token_ids=tuple((3 * token + row) % spec.vocabulary for token in range(prompt)),
            settings={"max_new_tokens": new},
        )
        for row, (prompt, new) in enumerate(rows)
    ]
    with load(path, policy=policy, scratch_bytes=SCRATCH_BYTES) as engine, written_bytes() as written:
        stats = engine.generate(asked, Request(ignore_eos=True)).stats
        file, alike = engine.file, rows_are_alike(engine, policy)
    assume(alike)
    lengths = [RowLengths(prompt, min(new, spec.positions - prompt)) for prompt, new in rows]
    found = simulate(file, like_numpy(), policy, lengths, NO_BUDGETS)
    assert found.peak_bytes == stats.peak_bytes
    assert found.link_bytes == without_zeros(stats.link_bytes)
    assert stats.spilled_bytes == sum(written), "what the disk writes is counted, whole pages too"
    assert found.disk_write_bytes == stats.spilled_bytes or not stats.direct_spills
    assert (found.blocks, found.rows, found.generated_tokens) == (stats.blocks, stats.rows, stats.generated_tokens)
    assert (found.passes, found.occupancy) == (stats.occupancy.passes, pytest.approx(stats.occupancy.mean))


@given(
    spec=own.specs(),
    stored=st.sampled_from([("none", "float32"), ("none", "float16"), ("int4", "float16")]),
    policy=own.policies(),
    rows=st.lists(st.integers(2, 12).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length - 1)))),
)
def test_bytes_and_peaks_of_a_job_that_scores_are_those_of_a_real_run(
    model_file: Any, spec: ModelSpec, stored: tuple[str, str], policy: Policy, rows: list[tuple[int, int]]
) -> None:
    """A row of so many tokens, scored from one of them on; the last one is never fed."""
    rows = [(min(length, spec.positions), first) for length, first in rows if first < spec.positions] or [(2, 1)]
    scored = [
        ScoredRow(tuple((3 * token + row) % spec.vocabulary for token in range(length)), first)
        for row, (length, first) in enumerate(rows)
    ]
    with (
        load(model_file(spec, *stored), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine,
        written_bytes() as written,
    ):
        stats, file = engine.score(scored).stats, engine.file
        alike = rows_are_alike(engine, policy)
    assume(alike)
    lengths = [RowLengths(length - 1, 1, length - first) for length, first in rows]
    found = simulate(file, like_numpy(), policy, lengths, NO_BUDGETS)
    assert found.peak_bytes == stats.peak_bytes
    assert found.link_bytes == without_zeros(stats.link_bytes)
    assert stats.spilled_bytes == sum(written)
    assert found.disk_write_bytes == stats.spilled_bytes or not stats.direct_spills
    assert (found.blocks, found.rows, found.generated_tokens) == (stats.blocks, stats.rows, stats.generated_tokens)
    assert found.prefill_s > 0
    assert found.decode_s == 0


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job, twice
@given(policy=own.policies(), rows=st.integers(1, 6), new_tokens=st.integers(8, 40), overlap=st.booleans())
def test_passes_that_are_left_out_take_what_they_would(
    policy: Policy, rows: int, new_tokens: int, overlap: bool
) -> None:
    """With a trace every pass is simulated."""
    file, machine = random_file(SPEC), plain_machine()
    job = [RowLengths(9, new_tokens)] * rows
    policy = policy.changed(overlap=overlap, groups_per_block=8, rows_per_group=2)
    short = simulate(file, machine, policy, job, NO_BUDGETS)
    whole = simulate(file, machine, policy, job, NO_BUDGETS, Trace(os.devnull))
    assert short.link_bytes == whole.link_bytes
    assert short.peak_bytes == whole.peak_bytes
    assert short.prefill_s == pytest.approx(whole.prefill_s)
    assert short.decode_s == pytest.approx(whole.decode_s, rel=0.01)


def one(machine: Machine, policy: Policy, **job: int) -> Any:
    lengths = [RowLengths(job.get("prompt", 8), job.get("new", 4))] * job.get("rows", 4)
    return simulate(random_file(SPEC), machine, policy, lengths, NO_BUDGETS)


STREAMED = Policy(weights=AWAY, cache=AWAY, activations=AWAY, rows_per_group=2, groups_per_block=2)


@given(policy=own.policies(), factor=st.floats(1.0, 8.0))
def test_a_faster_link_is_never_slower(policy: Policy, factor: float) -> None:
    """Links share nothing with operators here, so nothing is paid for speed. A list schedule may gain or lose a little
    by another order of two copies on one link: hence the margin."""
    slow, fast = plain_machine(link_per_s=1e8), plain_machine(link_per_s=1e8 * factor)
    assert one(fast, policy).decode_s <= one(slow, policy).decode_s * 1.02


def test_overlap_hides_the_shorter_of_moving_and_computing() -> None:
    """With compute and link about equal, one after the other takes nearly twice as long."""
    machine = plain_machine(link_per_s=1e9, memory_per_s=1e9, fixed_s=1e-7, disk_per_s=1e12)
    machine = machine.changed(host_s=HostSeconds(1e-9, 1e-9, 1e-9, 1e-9, 1e-9))
    policy = Policy(weights=AWAY, rows_per_group=4)
    together, apart = one(machine, policy), one(machine, policy.changed(overlap=False))
    assert together.decode_s < 0.7 * apart.decode_s
    assert together.link_bytes == apart.link_bytes


def test_both_directions_at_once_take_what_the_machine_says() -> None:
    """A job bound by a link whose copies back slow it down is slower by no more than the factor of the two."""
    quiet = plain_machine(link_per_s=1e8, memory_per_s=1e12, flops_per_s=1e15)
    both = {"host->device": {"device->host": 2.0}, "device->host": {"host->device": 2.0}}
    loud = quiet.changed(beside=both)
    before, after = (one(machine, STREAMED, prompt=64).prefill_s for machine in (quiet, loud))
    assert before < after <= 2 * before


def test_the_host_s_own_time_hides_behind_an_asynchronous_device_only() -> None:
    slow_host = HostSeconds(call=1e-5, submission=0.0, visit=0.0, choice=0.0, choice_row=0.0)
    machine = plain_machine(memory_per_s=1e8).changed(host_s=slow_host)
    port = machine.port
    waits = machine.changed(
        port=type(port)("numpy", "float32", False, True, True, 0, 0),
        host_s=HostSeconds(0.0, 0.0, 1e-3, 0.0, 0.0),
    )
    free = waits.changed(host_s=HostSeconds(0.0, 0.0, 0.0, 0.0, 0.0))
    policy = Policy(rows_per_group=4)
    hidden, called = one(machine, policy), one(machine.changed(host_s=free.host_s), policy)
    assert hidden.decode_s == pytest.approx(called.decode_s, rel=0.05)
    visits = 3 * (SPEC.layers + 2)  # of three decode passes: the embedding, the layers, at least one tile of the head
    assert one(waits, policy).decode_s - one(free, policy).decode_s >= 1e-3 * visits


def test_a_trace_of_a_simulation_is_one_of_a_run(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace:
        simulate(random_file(SPEC), plain_machine(), STREAMED, [RowLengths(8, 4)] * 4, NO_BUDGETS, trace)
    slices = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event["ph"] == "X"]
    lanes = {event["cat"] for event in slices}
    assert lanes == {"compute", "weights_in", "cache_in", "cache_out", "disk_in"}
    assert all(event["dur"] >= 0 for event in slices)
    assert sum(event["name"] == "layer 1 group 0" for event in slices) == 4


def test_what_does_not_fit_is_refused_as_a_run_would() -> None:
    budgets = {Tier.DEVICE: 1 << 16, Tier.HOST: None, Tier.DISK: None}
    with pytest.raises(CapacityError, match="device"):
        simulate(random_file(SPEC), plain_machine(), Policy(), [RowLengths(8, 4)], budgets)


def test_no_tokenizer_is_read_for_a_simulation() -> None:
    file, rows = replace(random_file(SPEC), tokenizer_json=b"no tokenizer"), [RowLengths(8, 4)]
    assert simulate(file, plain_machine(), Policy(), rows) == simulate(
        random_file(SPEC), plain_machine(), Policy(), rows
    )


def test_lanes_are_busy_for_no_more_than_all_of_the_time() -> None:
    found = one(plain_machine(link_per_s=1e8), STREAMED)
    assert 0.5 < found.lane_busy["weights_in"] <= 1
    assert all(0 <= share <= 1 for share in found.lane_busy.values())
    assert {type(lane) for lane in found.lane_busy} == {str}


def test_rows_alike_are_predicted_as_a_list_of_them_is() -> None:
    row = RowLengths(8, 4)
    found, listed = (
        simulate(random_file(SPEC), plain_machine(), STREAMED, rows, NO_BUDGETS)
        for rows in (AlikeRows(row, 7), [row] * 7)
    )
    assert found == listed
