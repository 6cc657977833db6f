"""How far a block reads ahead from disk: as its policy says, or as the host has room; its tokens stay the same."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.budgets import STAGES_AHEAD, lasting_needs, loading_need, totals
from flexref.block.memory_plan import plan_block
from flexref.block.rows import RowLengths
from flexref.block.workspace import Expansion
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.events import Notice
from flexref.engine.request import Request, RowRequest
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import open_weight_file
from flexref.tiers import disk, file_reads
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import GIB, Tier

SPEC = ModelSpec("deep", 150, 48, 16, 16, 7, 2, 32)
ROWS = [[1, 2, 3], [4, 5], [6]]
LENGTHS = [RowLengths(len(row), 3) for row in ROWS]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("ahead") / "deep.h5"
    write_model(place, SPEC)
    return str(place)


def _tokens(engine: Engine) -> list[list[int]]:
    return [list(output.token_ids) for output in engine.generate(ROWS, Request(3, ignore_eos=True)).outputs]


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs
@given(st.data())
def test_the_host_budget_holds_and_bits_stay_however_far_is_read_ahead(path: str, data: st.DataObject) -> None:
    file, caps = open_weight_file(path), NumpyBackend().caps
    host = data.draw(st.sampled_from([0.0, 0.2, 0.5]))
    asked = data.draw(st.sampled_from([None, None, 0.0, 20000 / GIB, 0.5]))
    groups = data.draw(st.integers(1, 2))
    policy = Policy(weights=Shares(0.0, host, 1 - host), rows_per_group=2, groups_per_block=groups)
    weights = WeightsPlan.under(file, policy.changed(read_ahead_gib=asked))
    block = plan_block(weights, caps, policy, LENGTHS, expansion=Expansion.NEVER)
    least = totals([*lasting_needs(weights, caps), *block.needs()])[Tier.HOST]
    least = max(least, totals([*lasting_needs(weights, caps), loading_need(weights)])[Tier.HOST])
    room = data.draw(st.integers(0, 9)) * weights.staging_slot_bytes + data.draw(st.integers(0, 4095))
    with load(path, policy=policy.changed(read_ahead_gib=asked), host_mem_gib=(least + room) / GIB) as engine:
        found, stats = _tokens(engine), engine.session.standing
        assert stats is not None
        settled, held = stats.stats.policy, engine.session.arenas[Tier.HOST]
        slots = WeightsPlan.under(file, settled).staging_slots
    with load(path, policy=policy.changed(overlap=False)) as plain:
        assert found == _tokens(plain)
    assert held.budget_bytes is not None
    assert held.peak_bytes <= held.budget_bytes
    fetched = len(weights.fetched)
    if asked is None:
        wanted = min(fetched, 2 + room // weights.staging_slot_bytes)
        assert slots == max(2, wanted), "the slots of a small model are small: all that there is room for"
    else:
        assert settled.read_ahead_gib == asked
        assert slots == max(2, min(fetched, int(asked * GIB) // weights.staging_slot_bytes))


@settings(max_examples=12)
@given(st.data())
def test_bytes_from_disk_are_those_that_were_read_however_early_the_job_ends(path: str, data: st.DataObject) -> None:
    """Rows end by a token; what is on its way for the next pass then is not counted, but for what had come."""
    host, overlap = data.draw(st.sampled_from([0.0, 0.4])), data.draw(st.booleans())
    ahead = data.draw(st.sampled_from([0.0, 0.1]))
    policy = Policy(weights=Shares(0.0, host, 1 - host), rows_per_group=3, overlap=overlap, read_ahead_gib=ahead)
    steps, pause_s = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([0.0, 0.002]))
    read, nbytes = file_reads.preadv, list[int]()

    def counted(file: int, into: Any, offset: int, name: str) -> int:
        time.sleep(pause_s)
        count = read(file, into, offset, name)
        nbytes.append(count)  # by several threads
        return count

    file, rows = open_weight_file(path), [ROWS[data.draw(st.integers(0, 2))]]
    with load(file, policy=policy) as engine:
        tokens = engine.generate(rows, Request(6, ignore_eos=True)).outputs[0].token_ids
    ending = replace(file, spec=replace(file.spec, eos_token_ids=(tokens[steps],)))
    with pytest.MonkeyPatch.context() as patch, load(ending, policy=policy) as engine:
        engine.session.weights_for(policy)
        for module in (file_reads, disk):
            patch.setattr(module, "preadv", counted)
        stats = engine.generate(rows, Request(6), policy=policy).stats
    assert stats.generated_tokens <= steps + 1
    moved = sum(stats.link_bytes["disk->host"].values())
    assert moved == sum(nbytes)
    store = WeightsPlan.under(file, policy)
    a_pass = sum(run.nbytes for stage in store.stages for run in stage.homes[Tier.DISK].runs)
    used = stats.link_bytes["disk->host"]["weights"] - stats.read_in_vain_bytes
    rows_read = used - stats.generated_tokens * a_pass
    assert 0 <= rows_read < a_pass, "besides whole passes only rows of the table are used"
    assert overlap or not stats.read_in_vain_bytes
    for link, kinds in stats.prefill_link_bytes.items():
        assert all(count <= stats.link_bytes[link][kind] for kind, count in kinds.items())


def test_a_job_that_reads_further_ahead_loads_no_weights_anew(path: str) -> None:
    half = Policy(weights=Shares(0.0, 0.5, 0.5), rows_per_group=3)
    with load(path, policy=half.changed(read_ahead_gib=0.0)) as engine:
        tokens = _tokens(engine)
        store = engine.session.weights_for(half)
        held = engine.session.arenas[Tier.HOST].held_bytes
        engine.session.settle = lambda session, rows: half.changed(read_ahead_gib=0.25)
        assert _tokens(engine) == tokens
        assert engine.session.weights_for(half.changed(read_ahead_gib=0.25)) is store
        more = store.plan.staging_slots - 2
        assert more >= STAGES_AHEAD - 2
        assert engine.session.arenas[Tier.HOST].held_bytes == held + more * store.plan.staging_slot_bytes


def test_rows_that_come_later_are_served_with_the_memory_that_was_read_ahead_into(tmp_path: Path) -> None:
    """A stream's policy is settled for the rows that are there first."""
    path = tmp_path / "long.h5"
    write_model(path, replace(SPEC, positions=250))
    file, caps = open_weight_file(path), NumpyBackend().caps
    policy = Policy(weights=Shares(0, 0, 1), cache=Shares(0, 1, 0), rows_per_group=1)
    weights = WeightsPlan.under(file, policy)
    block = plan_block(weights, caps, policy, [RowLengths(200, 8)], expansion=Expansion.NEVER)
    least = totals([*lasting_needs(weights, caps), *block.needs()])[Tier.HOST]
    short, long = RowRequest([1, 2], Request(2, ignore_eos=True)), RowRequest([1] * 200, Request(8, ignore_eos=True))
    with load(path, policy=policy) as rich:
        wanted = next(rich.run([long]))
    said: list[object] = []
    with load(path, policy=policy, host_mem_gib=least / GIB, on_event=said.append) as engine:
        assert engine.generate([[1, 2]], Request(2)).stats.policy.read_ahead_gib, "what is left is read ahead into"
        results = {result.number: result for result in engine.run(iter([*[short] * 99, long, short]), policy=policy)}
        found, held = results[99], engine.session.arenas[Tier.HOST]
        assert found.error is None, str(found.error)
        assert found.output == wanted.output
        assert all(result.output for result in results.values())
        assert held.peak_bytes <= least
        assert engine.generate([[1, 2]], Request(2)).stats.policy.read_ahead_gib
        assert not [event for event in said if isinstance(event, Notice)], "nobody had asked for more"
        asked = policy.changed(read_ahead_gib=3 * weights.staging_slot_bytes / GIB)
        results = {result.number: result for result in engine.run(iter([*[short] * 99, long, short]), policy=asked)}
        assert results[99].output == wanted.output
        (notice,) = [event for event in said if isinstance(event, Notice)]
        assert "read ahead from disk" in notice.text
