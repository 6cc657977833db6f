"""Links that are slowed by copying more: the bytes that a lane copies, what is computed, and what is said of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.backend.parts import Parts
from flexref.backend.protocol import HostWork, Lane, Move, Span
from flexref.bench import slow_link
from flexref.bench.slow_link import FROM_DEVICE, TO_DEVICE, SlowedLinks, slowed_links
from flexref.cli.main import COMMANDS, command_group, run
from flexref.engine.request import Request
from flexref.errors import PolicyError
from flexref.loading import load
from flexref.machine.plain import plain_machine
from flexref.policy import Policy
from flexref.storage.random_weights import random_file

SMALL = (
    *("--model", "tiny", "--prompt-len", "12", "--gen-len", "4", "--rows", "4", "--rows-per-group", "2"),
    *("--percent", "0", "100", "0", "100", "100", "0"),
)
SPEC = ModelSpec("plain", 173, 64, 32, 32, 3, 2, 64, activation="relu")


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory of these tests is small."""
    monkeypatch.setattr(slow_link, "SCRATCH_BYTES", 1 << 12)


class Counting(NumpyBackend):
    """Counts the bytes of every submission, by their link."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.tiers: dict[int, str] = {}
        self.copied: dict[str, int] = {}
        self.crossed = 0

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        self.tiers[id(buffer)] = tier
        return buffer

    def submit(self, lane: Any, steps: Any, after: Any) -> Any:
        for step in steps:
            if isinstance(step, Move):
                link = "->".join(self.tiers[id(span.buffer)] for span in (step.source, step.target))
                self.copied[link] = self.copied.get(link, 0) + step.nbytes
        return super().submit(lane, steps, after)

    def assign(self, target: Any, source: Any) -> None:
        self.crossed += source.nbytes
        super().assign(target, source)


KINDS = st.sampled_from(["in", "out", "within", "work", "parts", "rows"])
STEPS = st.lists(st.tuples(KINDS, st.integers(1, 9000)), max_size=6)


@given(STEPS, st.floats(0.1, 10))
def test_a_lane_copies_so_many_more_bytes_and_tells_the_times_of_its_own_steps(
    wanted: Sequence[tuple[str, int]], slower: float
) -> None:
    plain = Counting()
    port = SlowedLinks(plain, {TO_DEVICE: slower, FROM_DEVICE: 2 * slower})
    host, device = (port.allocate(tier, 1 << 14) for tier in ("host", "device"))
    plain.copied.clear()
    least = {TO_DEVICE: 0, FROM_DEVICE: 0, "device->device": 0}
    steps: list[Any] = []
    for kind, size in wanted:
        source, target, link = (device, host, FROM_DEVICE) if kind == "out" else (host, device, TO_DEVICE)
        if kind == "work":
            steps.append(HostWork("works", lambda: None, nbytes=size))
            continue
        if kind == "within":
            source, link = device, "device->device"
        whole, parts, count, nbytes = size, None, 1, size
        if kind == "parts":
            parts, whole = Parts.of([(0, 5, size // 2), (size, 0, 1)], 1 << 14, 1 << 14), size // 2 + 1
        if kind == "rows":
            nbytes, count, whole = size // 4 + 1, 3, 3 * (size // 4 + 1)
        spans = (Span(buffer, 0, 1 << 14 if parts else nbytes, count, nbytes) for buffer in (source, target))
        steps.append(Move("copies", *spans, parts))
        least[link] += whole
    before = port.submit(Lane.CACHE_IN, [Move("first", Span(host, 0, 8), Span(device, 8, 8))], ())
    ticket = port.submit(Lane.WEIGHTS_IN, steps, [before])
    ticket.wait()
    assert ticket.done()
    assert len(ticket.times()) == len(steps)
    assert all(start <= end for start, end in ticket.times())
    assert [start for start, _ in ticket.times()] == sorted(start for start, _ in ticket.times())
    least[TO_DEVICE] += 8
    for link, more in ((TO_DEVICE, slower), (FROM_DEVICE, 2 * slower), ("device->device", 0.0)):
        assert abs(plain.copied.get(link, 0) - (1 + more) * least[link]) <= len(steps) + 1
    port.close()


def test_what_is_computed_stays_as_it_was_and_crossings_in_order_with_operators_are_slower_too() -> None:
    file = random_file(SPEC, scheme="int4")
    policy = Policy.from_percent([0, 100, 0, 100, 0, 100], rows_per_group=2, groups_per_block=2, attention_on="host")
    prompts, found, crossed = [[5, 6, 7], [8], [9, 10]], [], []
    for more in (0.0, 3.0):
        plain = Counting()
        port: Any = SlowedLinks(plain, {TO_DEVICE: more, FROM_DEVICE: more})
        with load(file, backend=port, policy=policy) as engine:
            outputs = engine.generate(prompts, Request(5, ignore_eos=True)).outputs
        found.append([output.token_ids for output in outputs])
        crossed.append(plain.crossed)
    assert found[0] == found[1]
    assert crossed[1] > 2 * crossed[0]  # what stays on the device is assigned, too


def test_a_link_is_not_made_faster() -> None:
    with pytest.raises(PolicyError, match=r"a link of 60 GB/s cannot be tried here: device->host copies reach 55 GB/s"):
        slowed_links(NumpyBackend(), 60e9, {TO_DEVICE: 61e9, FROM_DEVICE: 55e9})


@given(st.floats(1e6, 1e12), st.floats(1, 1e9))
def test_a_machine_with_a_slower_link_has_that_rate_and_the_same_start(rate: float, nbytes: float) -> None:
    machine = plain_machine()
    slower = machine.with_slower_link(TO_DEVICE, rate)
    before_s, after_s = (each.copies[TO_DEVICE].seconds(nbytes) for each in (machine, slower))
    assert after_s >= before_s * (1 - 1e-9)
    assert slower.copies[FROM_DEVICE] == machine.copies[FROM_DEVICE]
    largest = 1e12
    own = machine.copies[TO_DEVICE].per_s(largest)
    assert slower.copies[TO_DEVICE].per_s(largest) == pytest.approx(min(rate, own), rel=0.05)


def bench(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["bench", *SMALL, *arguments])


def test_a_benchmark_of_another_link_is_of_another_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slow_link, "SCRATCH_BYTES", 1 << 20)
    assert bench("--link-gb-per-s", "0.2", "--json") == 0
    slowed = json.loads(capsys.readouterr().out)
    assert slowed["machine"]["link_gb_per_s"] == slowed["arguments"]["link_gb_per_s"] == 0.2
    assert slowed["decode_floor_terms_s"]["host->device"] > 0
    (tmp_path / "slow.json").write_text(json.dumps(slowed))
    assert bench("--baseline", str(tmp_path / "slow.json")) == 1
    assert "link-gb-per-s was 0.2, is None: another job" in capsys.readouterr().err
    assert bench("--link-gb-per-s", "90000") == 1
    assert "a link of 9e+04 GB/s cannot be tried here" in capsys.readouterr().err
    assert bench("--link-gb-per-s", "0.2") == 0
    assert "LINKS SLOWED to 0.2 GB/s" in " ".join(capsys.readouterr().out.split())
