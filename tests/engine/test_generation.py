"""Rows as users see them: they end when they should, do not see each other, and nothing is left behind."""

import errno
import gc
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import stages
from flexref.block.tracing.trace import Trace
from flexref.engine.events import Event
from flexref.engine.request import Request
from flexref.errors import CapacityError, FlexrefError, PolicyError, PromptError, StorageError, WeightFileError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.sampling.settings import SamplingSettings
from flexref.storage.weightfile import open_weight_file
from flexref.testing import strategies as own
from flexref.tiers.spill_file import SpillFile
from flexref.units import Tier

SPEC = ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64)
STREAMED = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=2)


def generate(path: str, rows: list[Any], policy: Policy | None = None, request: Request | None = None) -> list[Any]:
    with load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        return engine.generate(rows, request or Request(6)).outputs


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(own.token_rows(90, rows=6), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_seeded_row_gets_its_own_draws_however_rows_are_grouped(
    model_file: Any, rows: list[list[int]], rows_per_group: int, groups: int, overlap: bool
) -> None:
    request = Request(5, SamplingSettings(temperature=1.0, seed=3), ignore_eos=True)
    together = generate(
        model_file(SPEC), rows, Policy(rows_per_group=rows_per_group, groups_per_block=groups, overlap=overlap), request
    )
    alone = generate(model_file(SPEC), rows, Policy(rows_per_group=1), request)
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert [output.prompt for output in together] == rows


def test_rows_retire_at_their_end_token_and_the_others_go_on(model_file: Any) -> None:
    rows = [[5, 6], [9], [33, 4, 8]]
    plain = generate(model_file(SPEC), rows, STREAMED, Request(8, ignore_eos=True))
    # Whatever token the first row generates third becomes the end token of an otherwise equal model.
    end = plain[0].token_ids[2]
    ending = ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64, eos_token_ids=(end,))
    outputs = generate(model_file(ending), rows, STREAMED, Request(8))
    for output, whole in zip(outputs, plain, strict=True):
        until = whole.token_ids.index(end) + 1 if end in whole.token_ids else len(whole.token_ids)
        assert output.token_ids == whole.token_ids[:until]
        assert output.finish_reason == ("stop" if end in whole.token_ids else "length")
    assert outputs[0].finish_reason == "stop"


def test_a_row_is_cut_at_the_last_position(model_file: Any) -> None:
    (output,) = generate(model_file(SPEC), [list(range(3, 40))], None, Request(30, ignore_eos=True))
    assert len(output.token_ids) == 4  # the last of which is not read any more
    assert output.finish_reason == "length"


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "there is no prompt"),
        ([[]], "prompt 1: the prompt is empty"),
        ([[5], [90]], "prompt 2: token 1 is 90"),
        ([[5], list(range(3, 44))], "prompt 2: 41 tokens are too many: the model has 40 positions"),
        (["text"], "the model has no tokenizer"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_before_anything_is_loaded(
    model_file: Any, rows: list[Any], complaint: str
) -> None:
    with load(model_file(SPEC), scratch_bytes=1 << 16) as engine:
        with pytest.raises(PromptError, match=complaint):
            engine.generate(rows)
        assert engine.session.arenas[Tier.DEVICE].held_bytes == 1 << 16


def test_a_policy_for_another_scheme_is_refused(model_file: Any) -> None:
    with pytest.raises(PolicyError, match="made for int4 weights"):
        load(model_file(SPEC), policy=Policy(weights_scheme="int4"))


def test_a_policy_that_does_not_fit_says_which_tier_how_much_and_what_would_help(model_file: Any) -> None:
    with (
        load(model_file(SPEC), policy=Policy(), device_mem_gib=0.0001, scratch_bytes=1 << 16) as engine,
        pytest.raises(CapacityError, match=r"^device memory is too small by .*; give --device-mem-gib at least"),
    ):
        engine.generate([[5]])


@given(st.integers(1, 20))
def test_the_least_budget_that_a_refusal_names_is_enough(model_file: Any, tokens: int) -> None:
    def generate(device_mem_gib: float) -> None:
        policy = Policy(rows_per_group=1)
        with load(model_file(SPEC), policy=policy, device_mem_gib=device_mem_gib, scratch_bytes=1 << 16) as engine:
            engine.generate([[5] * tokens], max_new_tokens=1)

    with pytest.raises(CapacityError) as refused:
        generate(0.0001)
    named = re.search(r"--device-mem-gib at least ([0-9.]+)", str(refused.value))
    assert named is not None
    generate(float(named[1]))


@given(st.data())
def test_one_flipped_byte_of_weights_is_named_before_the_first_token(
    model_file: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spec = data.draw(st.sampled_from([SPEC, ModelSpec("untied", 90, 40, 32, 16, 2, 2, 64, tied_head=False)]))
    scheme = data.draw(st.sampled_from(["none", "int4"]))
    policy = data.draw(own.policies(cache_schemes=("none",)))
    source = model_file(spec, scheme, "float16")
    parts = list(open_weight_file(source).parts)
    part = data.draw(st.sampled_from(parts))
    place = part.extent.offset + data.draw(st.integers(0, part.extent.nbytes - 1))
    damaged = bytearray(Path(source).read_bytes())
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("damaged") / "model.h5"
    path.write_bytes(damaged)
    tokens: list[Any] = []
    with pytest.raises(WeightFileError, match=part.dataset), load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        tokens.extend(engine.stream([[5, 6], [7]]))
    assert tokens == []


def test_rows_that_were_asked_for_and_do_not_fit_are_refused_in_one_line(model_file: Any) -> None:
    # One row would fit; the twelve that were asked for do not.
    rows = [list(range(3, 33)) for _ in range(12)]
    with (
        load(model_file(SPEC), keep={"rows_per_group": 12}, device_mem_gib=0.0003, scratch_bytes=1 << 16) as engine,
        pytest.raises(CapacityError, match=r"^device memory is too small by"),
    ):
        engine.generate(rows)
    with load(model_file(SPEC), device_mem_gib=0.0003, scratch_bytes=1 << 16) as engine:
        assert len(engine.generate(rows, Request(2)).outputs) == 12


def test_a_full_disk_is_one_line_and_nothing_stays_allocated(
    model_file: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with load(model_file(SPEC), policy=STREAMED, disk_dir=tmp_path, scratch_bytes=1 << 16) as engine:
        before = {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()}
        with pytest.raises(StorageError, match=f"the disk of {tmp_path} is full: .* are needed, .* are free"):
            engine.generate([[5]])
        weights = {tier: arena.holders for tier, arena in engine.session.arenas.items()}
        assert all(set(held) <= {"weights", "weight slots", "weight staging", "scratch"} for held in weights.values())
        assert before.keys() == weights.keys()


def test_an_unwritable_spill_directory_is_one_line(model_file: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with (
        load(model_file(SPEC), policy=STREAMED, disk_dir=blocked / "below", scratch_bytes=1 << 16) as engine,
        pytest.raises(StorageError, match="cannot write in"),
    ):
        engine.generate([[5]])


def test_an_error_in_the_middle_ends_every_lane_and_frees_the_block(
    model_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SpillFile, offset: int, source: Any) -> None:
        raise StorageError("the disk has gone")

    monkeypatch.setattr(SpillFile, "write", broken)
    before = set(threading.enumerate())
    with load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16) as engine:
        with pytest.raises(StorageError, match="the disk has gone"):
            engine.generate([[5], [6], [7]])
        assert "KV cache" not in engine.session.arenas[Tier.DEVICE].holders
        monkeypatch.undo()
        assert len(engine.generate([[5], [6], [7]]).outputs) == 3
    assert set(threading.enumerate()) <= before


def test_a_stream_that_is_dropped_frees_its_block(model_file: Any) -> None:
    with load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16) as engine:
        tokens = engine.stream([[5], [6]], Request(20, ignore_eos=True))
        assert next(tokens).row in (0, 1)
        del tokens
        gc.collect()
        assert "logits" not in engine.session.arenas[Tier.DEVICE].holders


def test_weights_stay_loaded_between_jobs(model_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Event] = []
    with load(model_file(SPEC), policy=Policy(), scratch_bytes=1 << 16, on_event=loaded.append) as engine:
        first = engine.generate([[5]]).outputs
        assert loaded
        loaded.clear()
        assert engine.generate([[5]]).outputs == first
        assert loaded == []


def test_a_trace_holds_every_copy_and_every_computed_visit(model_file: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with load(model_file(SPEC), policy=STREAMED, scratch_bytes=1 << 16) as engine, Trace(path) as trace:
        stats = engine.generate([[5], [6], [7]], Request(3, ignore_eos=True), trace=trace).stats
    lanes = trace.busy_shares()
    assert set(lanes) == {"loading", "compute", "disk_in", "weights_in", "cache_in", "cache_out", "disk_out"}
    by_link: dict[str, int] = {}
    events = json.loads(path.read_text())
    for event in events:
        if "link" in event.get("args", {}) and event["name"] != "loading":
            link = event["args"]["link"]
            by_link[link] = by_link.get(link, 0) + event["args"]["bytes"]
    assert by_link == {link: sum(kinds.values()) for link, kinds in stats.link_bytes.items()}
    visits = [event for event in events if event.get("cat") == "compute"]
    file = open_weight_file(model_file(SPEC))
    assert len(visits) == 3 * 2 * len(stages(file.spec, file.tile_rows))


@given(own.shares(), own.shares())
def test_a_policy_survives_its_json(weights: Shares, cache: Shares) -> None:
    policy = Policy(weights=weights, cache=cache, attention_on="host", weights_scheme="int4")
    assert Policy.from_mapping(json.loads(policy.to_json())) == policy


@pytest.mark.parametrize(
    "values",
    [{"weight": {}}, {"weights": [1, 2]}, {"weights": {"device": 2}}, {"rows_per_group": 0}, {"overlap": 1}],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(FlexrefError) as refused:
        Policy.from_mapping(values)
    assert "\n" not in str(refused.value)
