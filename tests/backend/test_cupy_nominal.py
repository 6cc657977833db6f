"""Machines from nominal figures: more is never slower, and the H100's own measurements come back."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flexref_cupy import nominal
from flexref_cupy.device import SCRATCH_BYTES as PORT_SCRATCH
from flexref_cupy.nominal import machine_of
from flexref_cupy.operators.products import FUSED_ROWS as PORT_ROWS
from flexref_cupy.pinning import HOST_RESERVE as PORT_RESERVE
from flexref_cupy.recording import CALL_BYTES, GRAPH_BYTES
from flexref_cupy.recording import RECORDED_BYTES as PORT_RECORDED
from hypothesis import given
from hypothesis import strategies as st

from flexref.machine.curves import Curve
from flexref.machine.durations import Durations
from flexref.machine.machine import COPIES, HostSeconds, Machine
from flexref.machine.nominal_facts import FIGURES, NOMINAL_FORMAT, NOT_ABOVE, NominalFacts
from flexref.machine.plain import OPERATORS, plain_machine

H100: dict[str, float] = {
    "compute_capability": 9.0,
    "device_memory": 79.2,
    "device_reserved": 0.5,
    "host_memory": 126,
    "host_reserved": 4,
    "disk": 500,
    "disk_reserved": 25,
    "device_memory_peak": 3350,
    "device_memory_sustained": 2.9 / 3.35,
    "matrix_peak": 989,
    "matrix_sustained": 762 / 989,
    "link_in": 55.2,
    "link_out": 55.2,
    "link_in_beside_out": 43,
    "link_out_beside_in": 43,
    "disk_read": 1.8,
    "disk_write": 1.8,
    "host_memory_rate": 200,
    "host_attention": 40,
    "host_matrix": 1,
    "operator_call": 8,
}
"""The data sheet of the H100 SXM5, and what it sustained in the runs of backends/flexref_cupy/README.md."""

SLOWING = ("operator_call", "device_reserved", "host_reserved", "disk_reserved")
"""Figures of which less is better."""


def values_of(figures: dict[str, float]) -> dict[str, Any]:
    """A nominal file with these figures."""
    return {
        "format": NOMINAL_FORMAT,
        "name": "some",
        "about": "a machine",
        "figures": {
            name: {"value": value, "unit": FIGURES[name].unit, "source": "here"} for name, value in figures.items()
        },
    }


def facts_of(figures: dict[str, float]) -> NominalFacts:
    return NominalFacts.from_mapping(values_of(figures), "some.json")


@st.composite
def machines(draw: st.DrawFn) -> dict[str, float]:
    """Figures of any machine from a tenth to ten times an H100's."""
    figures = {}
    for name, value in H100.items():
        kind = FIGURES[name]
        low, high = max(kind.least, value / 10), min(kind.most, value * 10)
        figures[name] = draw(st.floats(low, high))
    for part, whole in NOT_ABOVE.items():
        figures[part] = min(figures[part], figures[whole] * 0.999)
    return figures


def shapes(machine: Machine) -> Iterator[tuple[str, Curve]]:
    """Every curve of a machine with a name; of a surface, its curves."""
    for field in ("copies", "expansions", "decode_attention", "prefill_attention", "operators"):
        for name, curve in getattr(machine, field).items():
            yield f"{field} {name}", curve
    for name, surface in machine.products.items():
        for elements, curve in surface.curves:
            yield f"products {name} {elements}", curve


@given(machines(), st.sampled_from(list(FIGURES)), st.floats(1.01, 10))
def test_more_of_any_figure_makes_nothing_slower_or_smaller(
    figures: dict[str, float], name: str, factor: float
) -> None:
    more = {**figures, name: min(figures[name] * factor, FIGURES[name].most)}
    if name in NOT_ABOVE:
        more[name] = min(more[name], more[NOT_ABOVE[name]] * 0.999)
    worse, better = (more, figures) if name in SLOWING else (figures, more)
    slow, fast = machine_of(facts_of(worse)), machine_of(facts_of(better))
    slow_curves = dict(shapes(slow))
    for what, curve in shapes(fast):
        for (size, took), (same, at_most) in zip(curve.points, slow_curves[what].points, strict=True):
            assert size == same
            assert took <= at_most * (1 + 1e-12), what
    assert all(fast.capacity_bytes[tier] >= slow.capacity_bytes[tier] for tier in slow.capacity_bytes)
    assert all(getattr(fast.host_s, one) <= getattr(slow.host_s, one) for one in HostSeconds.__slots__)


@given(machines())
def test_bigger_work_never_takes_less(figures: dict[str, float]) -> None:
    for what, curve in shapes(machine_of(facts_of(figures))):
        parts = [[took for _, took in curve.points]]
        # A product of codes just beyond the fused ones is made by cuBLAS, which may be the faster.
        if what.startswith(tuple(f"products {stored} " for stored in nominal.CODES)):
            parts = [
                [took for tokens, took in curve.points if (tokens <= PORT_ROWS) == is_fused]
                for is_fused in (True, False)
            ]
        for times in parts:
            assert times == sorted(times), what


@given(machines())
def test_a_nominal_machine_is_a_whole_one(figures: dict[str, float]) -> None:
    machine = machine_of(facts_of(figures))
    assert Machine.from_mapping(json.loads(json.dumps(machine.to_mapping())), "m") == machine
    assert set(machine.copies) == set(COPIES)
    assert set(OPERATORS) <= set(machine.operators)
    assert plain_machine().products.keys() | {"int8"} == machine.products.keys()  # which a plain machine expands
    assert plain_machine().expansions.keys() - machine.expansions.keys() == {machine.port.compute_dtype}
    assert plain_machine().decode_attention.keys() <= machine.decode_attention.keys()
    for link, other in (("host->device", "device->host"), ("device->host", "host->device")):
        assert machine.slowdown(link, other) >= 1


@given(machines(), st.floats(1, 16))
def test_large_copies_are_as_fast_as_their_figures_say(figures: dict[str, float], times: float) -> None:
    machine = machine_of(facts_of(figures))
    nbytes = times * (1 << 30)
    rates = {name: curve.per_s(nbytes) / 1e9 for name, curve in machine.copies.items()}
    figure_of = {
        **{"host->device": "link_in", "device->host": "link_out"},
        **{"disk->host": "disk_read", "weight file": "disk_read", "host->disk": "disk_write"},
    }
    for name, rate in rates.items():
        assert rate == pytest.approx(figures[figure_of[name]], rel=0.05), name
    inward, outward = ("host->device", "device->host"), ("device->host", "host->device")
    for (link, other), figure in ((inward, "link_in_beside_out"), (outward, "link_out_beside_in")):
        assert rates[link] / machine.slowdown(link, other) == pytest.approx(figures[figure], rel=0.05)


def test_what_a_plan_knows_of_the_port_is_what_the_port_says() -> None:
    assert nominal.SCRATCH_BYTES == PORT_SCRATCH
    assert nominal.RECORDED_BYTES == PORT_RECORDED
    assert (nominal.RECORDING_BYTES, nominal.RECORDED_CALL_BYTES) == (GRAPH_BYTES, CALL_BYTES)
    assert nominal.FUSED_ROWS == PORT_ROWS
    assert nominal.HOST_RESERVE == PORT_RESERVE
    port = machine_of(facts_of(H100)).port
    assert (port.name, port.compute_dtype, port.attends_on_host) == ("cupy", "float16", True)
    assert port.asynchronous
    assert port.overlaps_copies


# The H100's own measurements, from which the efficiencies come: they must come back.

WIDTH = 4096
MATRICES = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
"""The four products of a layer of OPT-6.7B."""

MICROSECONDS = {
    "float16": {1: 181, 32: 180, 64: 187, 128: 194, 512: 322, 4096: 2325},
    "int4": {512: 499, 4096: 2531},
}
"""backends/flexref_cupy/README.md."""

H200 = {**H100, "device_memory": 139, "device_memory_peak": 4800, "device_memory_sustained": 4.3 / 4.8}
H200_MICROSECONDS = {"int4": {1: 65, 16: 81, 32: 94, 64: 132}, "int8": {1: 73, 32: 109, 64: 157}}
"""The H200 multiplies as the H100 does; README.md there has its products for few tokens."""

FARTHER_OFF = {("int4", 32), ("int8", 64)}
"""Products that a line through all the others misses by more than 6 percent."""


@pytest.fixture(scope="module")
def h100() -> Durations:
    return Durations(machine_of(facts_of(H100)))


@pytest.mark.parametrize(
    ("stored", "tokens"), [(stored, tokens) for stored, times in MICROSECONDS.items() for tokens in times]
)
def test_products_of_the_h100_come_back_within_6_percent(h100: Durations, stored: str, tokens: int) -> None:
    took = sum(h100.linear(tokens, outputs, inputs, stored) for outputs, inputs in MATRICES)
    assert took * 1e6 == pytest.approx(MICROSECONDS[stored][tokens], rel=0.06)


@pytest.mark.parametrize(
    ("stored", "tokens"), [(stored, tokens) for stored, times in H200_MICROSECONDS.items() for tokens in times]
)
def test_products_of_the_h200_with_few_tokens_come_back_within_6_percent_but_two(stored: str, tokens: int) -> None:
    h200 = Durations(machine_of(facts_of(H200)))
    took = sum(h200.linear(tokens, outputs, inputs, stored) for outputs, inputs in MATRICES)
    rel = 0.1 if (stored, tokens) in FARTHER_OFF else 0.06
    assert took * 1e6 == pytest.approx(H200_MICROSECONDS[stored][tokens], rel=rel)


def test_4_bit_products_beyond_the_fused_ones_pay_for_the_expansion(h100: Durations) -> None:
    took = sum(h100.linear(129, outputs, inputs, "int4") for outputs, inputs in MATRICES)
    assert took * 1e6 == pytest.approx(394, rel=0.06)


@pytest.mark.parametrize("width", [4096, 7168, 12288])
def test_long_products_reach_650_to_770_tflops(h100: Durations, width: int) -> None:
    for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        rate = 2 * 4096 * outputs * inputs / h100.linear(4096, outputs, inputs, "float16")
        assert 650e12 < rate < 770e12


@pytest.mark.parametrize(("scheme", "token_bytes", "measured"), [("int4", 4608, 74e-6), ("none", 16384, 188e-6)])
def test_decode_attention_of_the_h100_comes_back_within_5_percent(
    h100: Durations, scheme: str, token_bytes: int, measured: float
) -> None:
    took = h100.attend(("device", scheme, 128), 32, token_bytes, [(512, 1)] * 64)
    assert took == pytest.approx(measured, rel=0.05)


def test_prefill_attention_of_the_h100_comes_back_within_5_percent(h100: Durations) -> None:
    assert h100.attend(("device", "int4", 128), 32, 4608, [(0, 512)] * 8) == pytest.approx(173e-6, rel=0.05)


@pytest.mark.parametrize(("nbytes", "rate"), [(1 << 16, 16.6), (1 << 20, 47), (1 << 24, 54.6), (1 << 28, 55.2)])
def test_copies_of_the_h100_come_back_within_4_percent(h100: Durations, nbytes: int, rate: float) -> None:
    assert nbytes / h100.copy("host->device", nbytes) / 1e9 == pytest.approx(rate, rel=0.04)


def test_expansion_of_the_h100_comes_back_within_6_percent(h100: Durations) -> None:
    elements = 4 * WIDTH * WIDTH
    assert elements * 2.5625 / h100.expand(elements, "int4") == pytest.approx(2.74e12, rel=0.06)


def test_the_hosts_own_seconds_are_those_of_the_h100s_host() -> None:
    host_s = machine_of(facts_of(H100)).host_s
    expected = HostSeconds(8e-6, submission=4e-5, visit=6e-5, choice=3e-4, choice_row=5e-6, replay=4e-6, record=2e-5)
    for name in HostSeconds.__slots__:
        assert getattr(host_s, name) == pytest.approx(getattr(expected, name))
