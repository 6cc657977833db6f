"""Attention on the host runs on a lane of its own, for as many rows as a policy says, and fails as all lanes do."""

import threading
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.stall import Stalled
from flexref.block.rooms import BlockRooms
from flexref.block.rows import RowLengths
from flexref.block.tracing.trace import Trace
from flexref.engine.request import Request
from flexref.errors import LaneFailed, PolicyError
from flexref.loading import load
from flexref.policy import Policy, Shares, asked
from flexref.tiers.open_work import OpenWork
from flexref.units import Tier

SPEC = ModelSpec("host-attention", 40, 32, 8, 8, 2, 2, 16)
PROMPTS = [[5, 6, 7], [8, 9], [5], [6, 7, 8, 9], [9, 9], [7, 5, 6]]
DIVIDED = Policy(
    cache=Shares(0, 1, 0), rows_per_group=2, groups_per_block=3, attention_on="host", host_attention_share=0.5
)


class Noting(NumpyBackend):
    """Notes the threads of attention, and fails on those of lanes if it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.threads, self.fails = set[str](), fails

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        name = threading.current_thread().name
        self.threads.add(name)
        if self.fails and name.startswith("flexref lane"):
            raise RuntimeError("the host's cores are tired")
        return super().attend(rows, segments, q, scale, out)


@pytest.mark.parametrize("overlap", [True, False])
def test_rows_are_attended_to_on_the_lane_and_on_the_device_and_the_account_has_the_lane(
    model_file: Any, tmp_path: Path, overlap: bool
) -> None:
    port = Noting()
    policy = DIVIDED.changed(overlap=overlap)
    with load(model_file(SPEC), policy=policy, backend=port) as engine, Trace(tmp_path / "trace.json") as trace:
        stats = engine.generate(PROMPTS, Request(4, ignore_eos=True), trace=trace).stats
    assert port.threads == {"MainThread", "flexref lane host_compute"}
    assert 0 < stats.lane_busy["host_compute"] <= 1
    assert stats.link_bytes["host->device"]["cache"] > 0, "the other rows' caches cross the link"
    assert stats.link_bytes["device->host"]["activations"] == 3 * stats.link_bytes["host->device"]["activations"]


@pytest.mark.parametrize("overlap", [True, False])
def test_what_attention_raises_on_the_lane_reaches_the_caller_once(model_file: Any, overlap: bool) -> None:
    port = Noting(fails=True)
    with load(model_file(SPEC), policy=DIVIDED.changed(overlap=overlap), backend=port) as engine:
        for _ in range(2):
            with pytest.raises(LaneFailed) as failed:
                engine.generate(PROMPTS, Request(4, ignore_eos=True))
            assert str(failed.value).startswith("lane host_compute failed in attention on the host: RuntimeError")
        port.fails = False
        found = engine.generate(PROMPTS, Request(4, ignore_eos=True))
    with load(model_file(SPEC), policy=Policy()) as engine:
        expected = engine.generate(PROMPTS, Request(4, ignore_eos=True))
    assert [output.token_ids for output in found.outputs] == [output.token_ids for output in expected.outputs]


def test_a_lane_that_hangs_in_attention_is_named_and_no_link() -> None:
    work = OpenWork("host_compute", "attention on the host", "", 0, 1)
    assert Stalled(work, 61).text == "lane host_compute has made no progress for 61 s: attention on the host"


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(2, 9)), min_size=1, max_size=24),
    st.sampled_from((0.0, 0.25, 0.5, 0.8, 1.0)),
    st.sampled_from((Shares(0, 1, 0), Shares(0.3, 0.4, 0.3), Shares(0, 0, 1))),
)
def test_a_share_of_the_records_off_the_device_is_read_in_place_those_on_the_host_first(
    lengths: list[tuple[int, int]], share: float, cache: Shares
) -> None:
    rows = [RowLengths(*each) for each in lengths]
    policy = DIVIDED.changed(cache=cache, rows_per_group=8, host_attention_share=share)
    rooms = BlockRooms.of(rows, policy).groups
    longest, off, within = max(row.capacity_tokens for row in rows), 0, 0
    for room in rooms:  # evenly: as far as groups go they are owed no more than a row
        off += room.tokens[Tier.HOST] + room.tokens[Tier.DISK]
        within += sum(room.in_place.tokens.values())
        assert abs(within - share * off) <= longest
        if room.in_place.tokens[Tier.DISK]:
            assert room.in_place.tokens[Tier.HOST] == room.tokens[Tier.HOST]


def test_a_share_needs_attention_on_the_host() -> None:
    with pytest.raises(PolicyError) as refused:
        Policy(host_attention_share=0.5)
    assert str(refused.value) == (
        "host_attention_share 0.5 needs attention_on host (--attention-on host), found device"
    )
    for options in ({"host_attention_percent": 50.0}, {"host_attention_percent": 100.0, "attention_on": "device"}):
        with pytest.raises(PolicyError, match=r"% of attention on the host needs --attention-on host, found device$"):
            asked(options)
    kept = asked({"host_attention_percent": 25.0, "attention_on": "host"}).keep
    assert kept == {"attention_on": "host", "host_attention_share": 0.25}


def test_options_change_the_share_of_a_policy_that_is_read(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(DIVIDED.to_json(), encoding="utf-8")
    assert Policy.read(file) == DIVIDED
    assert asked({"policy": file, "host_attention_percent": 75.0}).policy == DIVIDED.changed(host_attention_share=0.75)
    on_device = asked({"policy": file, "attention_on": "device"}).policy
    assert on_device == DIVIDED.changed(attention_on="device", host_attention_share=1.0)
