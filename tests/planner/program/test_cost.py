"""The cost model: each term is what its formula says, and linear in the shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind
from flexref.machine.durations import Durations
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine
from flexref.planner.program.blocks import ON_DEVICE, ON_HOST, Blocks, phases
from flexref.planner.program.cost import HOST, HOST_ATTENTION, Costs
from flexref.planner.program.linear import IN_PLACE, SHARES, VARIABLES, Share
from flexref.planner.program.task import Task
from flexref.policy import Shares
from flexref.testing.tasks import all_shares, block_costs, machines, moved_bytes, plain_task, tasks
from flexref.units import LINKS

MACHINE = plain_machine()
DEVICE, HOST_SHARES, DISK = Shares(1, 0, 0), Shares(0, 1, 0), Shares(0, 0, 1)


def seconds(found: Costs, phase: str, resource: str, shares: dict[Share, float]) -> float:
    return found.value(found.seconds[phase][resource], shares, 0)


def point(shares: dict[Share, float], in_place: float) -> dict[Share, float]:
    """Some value of every share of which that part of the cache off the device is read in place; kinds on the device
    take what the other tiers leave, as attention there is of what is not read in place."""
    away = min(1.0, shares["cache", "host"] + shares["cache", "disk"])
    return {**shares, IN_PLACE: in_place * away}


@given(machines(), tasks(), st.integers(1, 9), st.integers(1, 5), st.data())
def test_every_term_is_linear(machine: Machine, task: Task, rows: int, groups: int, data: st.DataObject) -> None:
    found = block_costs(task, machine, rows, groups, DISK)
    points = st.builds(
        point, st.dictionaries(st.sampled_from(SHARES), st.floats(0, 1), min_size=9, max_size=9), st.floats(0, 1)
    )
    one, other = data.draw(points), data.draw(points)
    middle = {share: (one[share] + other[share]) / 2 for share in VARIABLES}
    terms = [term for phase in found.seconds.values() for term in phase.values()]
    terms += [term for holders in found.held.values() for term in holders.values()]
    for term in [*terms, found.disk_write_bytes]:
        ends = found.value(term, one, 0), found.value(term, other, 0)
        assert found.value(term, middle, 0) == pytest.approx(sum(ends) / 2, rel=1e-9, abs=1e-12)
        assert min(ends) >= -1e-12


@given(machines(), tasks())
def test_many_candidates_cost_what_each_costs(machine: Machine, task: Task) -> None:
    sizes = [(1, 1), (3, 2), (3, 4), (8, 1)]
    rows, groups = np.array(sizes).T
    together = Costs(machine, task, Blocks.of(rows * groups, groups, rows, [False] * 4, [ON_HOST] * 4))
    shares = all_shares(Shares(0.5, 0.5, 0), Shares(0, 0.5, 0.5), HOST_SHARES)
    for place, (count, several) in enumerate(sizes):
        alone = Costs(machine, task, Blocks.of([count * several], [several], [count], [False], [ON_HOST]))
        for phase, terms in together.seconds.items():
            for resource, term in terms.items():
                expected = seconds(alone, phase, resource, shares)
                assert together.value(term, shares, place) == pytest.approx(expected, rel=1e-12)


def test_decode_passes_find_the_prompt_and_what_came_since() -> None:
    prefill, decode = phases(plain_task(prompt_tokens=10.0, new_tokens=5))
    assert (prefill.passes, prefill.new_tokens, prefill.past_tokens) == (1, 10, 0)
    assert decode.passes * decode.past_tokens == 10 + 11 + 12 + 13
    assert phases(plain_task(new_tokens=1))[1].passes == 0
    assert (
        moved_bytes(
            block_costs(plain_task(new_tokens=1), MACHINE), all_shares(HOST_SHARES, HOST_SHARES, HOST_SHARES), "decode"
        )
        == {}
    )


def test_weights_cross_once_a_pass_whatever_the_groups() -> None:
    task = plain_task()
    streamed = sum(task.stage_bytes)
    for groups in (1, 5):
        found = block_costs(task, MACHINE, groups=groups)
        assert moved_bytes(found, all_shares(weights=HOST_SHARES)) == {("host->device", "weights"): 16 * streamed}
        half = all_shares(weights=Shares(0.5, 0.25, 0.25))
        assert moved_bytes(found, half, "prefill") == {
            ("host->device", "weights"): 0.5 * streamed,
            ("disk->host", "weights"): 0.25 * streamed,
        }
    curve = MACHINE.copies["host->device"]
    expected = sum(curve.seconds(nbytes) for nbytes in task.stage_bytes)
    assert seconds(
        block_costs(task, MACHINE), "prefill", "host->device", all_shares(weights=HOST_SHARES)
    ) == pytest.approx(expected)


def test_an_untied_token_table_has_a_home_and_never_streams() -> None:
    spec = ModelSpec("untied", 4096, 256, 256, 256, 4, 4, 1024, tied_head=False)
    task = plain_task(spec)
    assert task.gathered_bytes == 4096 * 256 * 2
    found = block_costs(task, MACHINE)
    assert moved_bytes(found, all_shares(weights=DISK), "prefill")["disk->host", "weights"] == sum(task.stage_bytes)
    assert (
        found.value(found.held["disk"]["weights"], all_shares(weights=DISK), 0)
        == sum(task.stage_bytes) + 4096 * 256 * 2
    )


def test_a_prefill_stores_records_and_decode_loads_them_and_stores_one_more() -> None:
    task = plain_task(prompt_tokens=64.0, new_tokens=3)
    found, rows = block_costs(task, MACHINE, rows=3, groups=2), 6
    records = task.spec.layers * rows * task.record_bytes
    assert moved_bytes(found, all_shares(cache=HOST_SHARES), "prefill") == {("device->host", "cache"): 64 * records}
    assert moved_bytes(found, all_shares(cache=DISK), "decode") == {
        ("host->device", "cache"): (64 + 65) * records,
        ("disk->host", "cache"): (64 + 65) * records,
        ("device->host", "cache"): 2 * records,
        ("host->disk", "cache"): 2 * records,
    }
    copy = MACHINE.copies["host->device"].seconds(3 * 64.5 * task.record_bytes)
    expected = 2 * 2 * task.spec.layers * copy  # passes, groups, layers
    assert seconds(found, "decode", "host->device", all_shares(cache=HOST_SHARES)) == pytest.approx(expected)
    assert found.value(found.disk_write_bytes, all_shares(cache=DISK), 0) == (64 + 2) * records


def test_attention_on_the_host_leaves_the_cache_there() -> None:
    task = plain_task(prompt_tokens=64.0, new_tokens=2, attention_on="host")
    found, layers, width = block_costs(task, MACHINE, rows=3, groups=2), task.spec.layers, task.spec.width
    tokens = layers * 6
    in_place, crossing = (all_shares(cache=HOST_SHARES, host_attention_share=share) for share in (1.0, 0.0))
    assert moved_bytes(found, in_place, "decode") == {
        ("device->host", "activations"): tokens * 3 * width * 4,
        ("host->device", "activations"): tokens * width * 4,
    }
    near_task = plain_task(prompt_tokens=64.0, new_tokens=2)
    assert moved_bytes(found, crossing, "decode") == moved_bytes(block_costs(near_task, MACHINE), crossing, "decode")
    from_disk = moved_bytes(found, all_shares(cache=DISK, host_attention_share=1.0), "decode")
    assert from_disk["disk->host", "cache"] == 64 * tokens * task.record_bytes
    assert from_disk["host->disk", "cache"] == tokens * task.record_bytes
    durations = Durations(MACHINE)
    slow_host = MACHINE.changed(
        decode_attention={
            key: curve.scaled(9) if key.startswith("host") else curve for key, curve in MACHINE.decode_attention.items()
        }
    )
    far = visits_seconds(block_costs(task, slow_host), in_place)
    near = seconds(found, "decode", "compute", all_shares())
    attend = durations.attend(("device", "none", 64), 4, task.record_bytes, [(64, 1)] * 3)
    crossings = sum(
        MACHINE.copies[link].seconds(3 * count * width * 4)
        for link, count in (("device->host", 3), ("host->device", 1))
    )
    append = durations.append("device", "none", 3 * task.record_bytes)
    on_host = 9 * attend + durations.append("host", "none", 3 * task.record_bytes)
    assert far - near == pytest.approx(2 * layers * (on_host + crossings - attend - append))


def visits_seconds(found: Costs, shares: dict[Share, float]) -> float:
    """What the visits of decode take, one after another, with attention on the host."""
    (term,) = (term for resources, term in found.rows("decode") if resources == ("compute", HOST_ATTENTION))
    return found.value(term, shares, 0)


def test_hidden_states_are_loaded_and_stored_once_more_than_there_are_layers() -> None:
    task = plain_task(prompt_tokens=64.0, new_tokens=3)
    found = block_costs(task, MACHINE, rows=3, groups=2, activations=DISK)
    nbytes = (task.spec.layers + 1) * 6 * task.spec.width * 4
    way = {(link, "activations"): 64 * nbytes for link in LINKS}
    assert moved_bytes(found, all_shares(activations=DISK), "prefill") == way
    assert moved_bytes(found, all_shares(activations=HOST_SHARES), "decode") == {
        (link, "activations"): 2 * nbytes for link in ("host->device", "device->host")
    }


def test_a_single_group_waits_for_its_hidden_states() -> None:
    task = plain_task()
    for groups, waits in ((1, True), (2, False)):
        found = block_costs(task, MACHINE, groups=groups, activations=HOST_SHARES)
        there, away = (
            seconds(found, "prefill", "compute", all_shares(activations=where)) for where in (DEVICE, HOST_SHARES)
        )
        carried = sum(seconds(found, "prefill", link, all_shares(activations=HOST_SHARES)) for link in LINKS)
        assert away - there == pytest.approx(carried if waits else 0.0, abs=1e-12)


def test_matrices_are_expanded_once_for_all_groups_where_that_is_chosen() -> None:
    task = plain_task(stored="int4")
    blocks = [Blocks.of([12], [4], [3], [expanded], [ON_DEVICE]) for expanded in (False, True)]
    stored, expanded = (seconds(Costs(MACHINE, task, block), "decode", "compute", all_shares()) for block in blocks)
    durations, width = Durations(MACHINE), task.spec.width
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    layers, passes, tiles = task.spec.layers, 15, [(2048, width)] * 2
    saved = sum(
        layers * (durations.linear(3, *shape, "int4") - durations.linear(3, *shape, "float32")) for shape in shapes
    ) + sum(durations.linear(3, *tile, "float16") - durations.linear(3, *tile, "float32") for tile in tiles)
    spent = sum(layers * durations.expand(shape[0] * shape[1], "int4") for shape in shapes)
    spent += sum(durations.expand(shape[0] * shape[1], "float16") for shape in tiles)
    assert expanded - stored == pytest.approx(passes * (spent - 4 * saved), rel=1e-3)  # tiles: the first holds a norm
    few = MACHINE.changed(port=type(MACHINE.port)("numpy", "float32", True, True, True, 0, fused_rows=3))
    found = [seconds(Costs(few, task, block), "decode", "compute", all_shares()) for block in blocks]
    assert found[0] == found[1]


def test_the_hosts_own_work_is_beside_an_asynchronous_device_and_within_a_synchronous_one() -> None:
    task = plain_task(new_tokens=2)
    host, stages, layers = MACHINE.host_s, len(task.stage_bytes), task.spec.layers
    choice = 2 * (host.choice + 3 * host.choice_row)
    calls = 2 * (9 * layers + (2 + 2) + (3 + 2 + 1)) * host.call
    visits = 2 * stages * host.visit
    weights = 2 * stages * host.submission
    found = block_costs(task, MACHINE)
    assert seconds(found, "decode", HOST, all_shares()) == pytest.approx(calls + visits + choice)
    assert seconds(found, "decode", HOST, all_shares(weights=DISK)) == pytest.approx(calls + visits + choice + weights)
    together = block_costs(task, plain_machine(asynchronous=False))
    assert HOST not in together.seconds["decode"]
    alone = seconds(found, "decode", "compute", all_shares()) - choice
    expected = alone + visits + choice + weights
    assert seconds(together, "decode", "compute", all_shares(weights=DISK)) == pytest.approx(expected)


def test_what_works_beside_a_resource_slows_it() -> None:
    task, shares = plain_task(), all_shares(HOST_SHARES, HOST_SHARES, DEVICE)
    slower = MACHINE.changed(beside={"compute": {"host->device": 1.5}, "device->host": {"host->device": 1.2}})
    alone, beside = block_costs(task, MACHINE), block_costs(task, slower)
    inward = seconds(alone, "decode", "host->device", shares)
    assert seconds(beside, "decode", "host->device", shares) == inward
    for resource, more in (("compute", 0.5), ("device->host", 0.2)):
        expected = seconds(alone, "decode", resource, shares) + more * inward
        assert seconds(beside, "decode", resource, shares) == pytest.approx(expected)
    serial = plain_task(overlap=False)
    assert seconds(block_costs(serial, slower), "decode", "compute", shares) == seconds(
        block_costs(serial, MACHINE), "decode", "compute", shares
    )


def test_without_overlap_a_phase_takes_the_sum() -> None:
    found = block_costs(plain_task(overlap=False), MACHINE)
    shares = all_shares(HOST_SHARES, DISK, DEVICE)
    for phase, terms in found.seconds.items():
        links = sum(seconds(found, phase, link, shares) for link in LINKS)
        told = {resources: found.value(term, shares, 0) for resources, term in found.rows(phase)}
        assert told == {
            (*LINKS, unit): pytest.approx(links + seconds(found, phase, unit, shares)) for unit in ("compute", HOST)
        }
        assert set(terms) == {*LINKS, "compute", HOST}


def test_memory_follows_the_longest_prompt_and_seconds_the_mean() -> None:
    even, ragged = plain_task(prompt_tokens_most=64), plain_task(prompt_tokens_most=128)
    assert block_costs(even, MACHINE).seconds.keys() == block_costs(ragged, MACHINE).seconds.keys()
    for phase in ("prefill", "decode"):
        assert seconds(block_costs(even, MACHINE), phase, "compute", all_shares()) == seconds(
            block_costs(ragged, MACHINE), phase, "compute", all_shares()
        )
    homes = [
        block_costs(task, MACHINE).value(block_costs(task, MACHINE).held["device"]["KV cache"], all_shares(), 0)
        for task in (even, ragged)
    ]
    assert homes == [4 * 6 * (tokens + 15) * even.record_bytes for tokens in (64, 128)]


@given(tasks(), st.sampled_from(("device", "host")), st.integers(1, 9), st.integers(1, 4))
def test_token_rows_are_counted_wherever_the_table_is_not_all_on_the_device(
    task: Task, tier: str, rows: int, groups: int
) -> None:
    found = block_costs(task, MACHINE, rows=rows, groups=groups)
    layers = sum(
        nbytes for nbytes, kind in zip(task.stage_bytes, task.stage_kinds, strict=True) if kind is StageKind.LAYER
    )
    layer_share = layers / (sum(task.stage_bytes) + task.gathered_bytes)
    needed = (2 if task.overlap else 1) * rows * task.prompt_tokens_most * task.spec.embed_width
    holder = "token row slots" if tier == "device" else "token row staging"
    just_missing = Shares(1 - layer_share, layer_share, 0)
    counted = found.value(found.held[tier][holder], all_shares(weights=just_missing), 0)
    assert counted >= needed * (4 if task.dense == "float32" else 2) * (1 - 1e-9)


def test_a_prefill_attends_to_every_visible_pair_and_decode_reads_every_record() -> None:
    task, durations = plain_task(prompt_tokens=64.0, new_tokens=2), Durations(MACHINE)
    curves = ("prefill_attention", [(0, 64)] * 3), ("decode_attention", [(64, 1)] * 3)
    for phase, (field, rows) in zip(("prefill", "decode"), curves, strict=True):
        scaled = {key: curve.scaled(11) for key, curve in getattr(MACHINE, field).items()}
        slow = block_costs(task, MACHINE.changed(**{field: scaled}))
        more = seconds(slow, phase, "compute", all_shares()) - seconds(
            block_costs(task, MACHINE), phase, "compute", all_shares()
        )
        attend = durations.attend(("device", "none", 64), task.spec.heads, task.record_bytes, rows)
        assert more == pytest.approx(2 * task.spec.layers * 10 * attend)
