"""Durations over arrays: they are those of single sizes, and refuse what a machine does not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PolicyError
from flexref.machine.arrays import ArrayDurations, curve_seconds, surface_seconds
from flexref.machine.curves import Curve, Surface
from flexref.machine.durations import Durations
from flexref.machine.plain import plain_machine

MACHINE = plain_machine()


@given(
    points=st.dictionaries(st.integers(1, 10**9), st.floats(1e-9, 1e3), min_size=1, max_size=6),
    sizes=st.lists(st.floats(0, 1e12), min_size=1, max_size=6),
    breadth=st.floats(0.5, 1e6),
)
def test_curves_over_arrays_are_curves(points: dict[int, float], sizes: list[float], breadth: float) -> None:
    curve = Curve(tuple(sorted((float(size), taken) for size, taken in points.items())))
    assert curve_seconds(curve, sizes) == pytest.approx([curve.seconds(size) for size in sizes], rel=1e-9)
    surface = Surface(((2.0, curve), (300.0, curve.scaled(3)), (4e4, curve.scaled(7))))
    expected = [surface.seconds(breadth, size) for size in sizes]
    assert surface_seconds(surface, breadth, sizes) == pytest.approx(expected, rel=1e-9)


def test_calls_over_arrays_take_what_single_calls_take() -> None:
    one, many = Durations(MACHINE), ArrayDurations(MACHINE)
    assert many.linear(7.0, 300, 200, "int4") == pytest.approx(one.linear(7, 300, 200, "int4"))
    assert many.append("host", "none", 5e5) == pytest.approx(one.append("host", "none", 500_000))
    where = ("device", "none", 64)
    assert many.attend_records(where, 9 * 512.0) == pytest.approx(one.attend(where, 4, 512, [(8, 1)]))
    assert many.attend_pairs(where, 4 * 256 * 36.0) == pytest.approx(one.attend(where, 4, 512, [(0, 8)]))
    assert many.expand(1e5, "int4", "float32") == pytest.approx(one.expand(100_000, "int4"))


def test_what_a_machine_does_not_know_is_named() -> None:
    with pytest.raises(PolicyError, match="no products with int3"):
        ArrayDurations(MACHINE).linear(7.0, 300, 200, "int3")
    with pytest.raises(PolicyError, match="no operator 'sing'"):
        ArrayDurations(MACHINE).operator("sing", 1.0)


def test_eight_bit_weights_that_were_not_measured_are_expanded_and_multiplied() -> None:
    one, many = Durations(MACHINE), ArrayDurations(MACHINE)
    dense = one.linear(7, 300, 200, MACHINE.port.compute_dtype)
    assert one.linear(7, 300, 200, "int8") == pytest.approx(one.expand(300 * 200, "int8") + dense)
    assert many.linear(7.0, 300, 200, "int8") == pytest.approx(one.linear(7, 300, 200, "int8"))
    assert many.linear(7.0, 300, 200, "int8") > dense
