"""Curves and surfaces: what holds between and beyond their points, and what they refuse."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PolicyError
from flexref.machine.curves import POINTS_MOST, Curve, Surface, check_number

SMALL = 1e-9
"""Relative; powers and logarithms of numbers far apart lose some digits."""

sizes = st.floats(1e-3, 1e15)
seconds = st.floats(1e-9, 1e9)


@st.composite
def curves(draw: st.DrawFn, *, rising: bool = False) -> Curve:
    at = sorted(draw(st.sets(sizes, min_size=1, max_size=8)))
    took = draw(st.lists(seconds, min_size=len(at), max_size=len(at)))
    return Curve(tuple(zip(at, sorted(took) if rising else took, strict=True)))


surfaces = st.builds(
    lambda named: Surface(tuple(sorted(named.items()))), st.dictionaries(sizes, curves(), min_size=1, max_size=4)
)
texts = st.text(max_size=8)
numbers = st.integers() | st.integers(-(10**400), 10**400) | st.floats()
jsons = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@given(curves())
def test_a_curve_goes_through_its_points(curve: Curve) -> None:
    for size, took in curve.points:
        assert curve.seconds(size) == pytest.approx(took, rel=SMALL)


@given(curves(rising=True), sizes, sizes)
def test_more_never_takes_less_if_the_points_say_so(curve: Curve, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert curve.seconds(low) <= curve.seconds(high) * (1 + SMALL)


@given(curves(), st.floats(1, 1e6))
def test_beyond_the_last_point_seconds_grow_in_proportion(curve: Curve, times: float) -> None:
    last, took = curve.points[-1]
    assert curve.seconds(last * times) == pytest.approx(took * times, rel=SMALL)


@given(curves(), st.floats(1e-9, 1))
def test_below_the_first_point_seconds_are_a_fixed_cost(curve: Curve, share: float) -> None:
    assert curve.seconds(curve.points[0][0] * share) == curve.points[0][1]


@given(st.floats(0, 1), st.floats(1, 1e12), st.floats(1, 1e6), st.floats(1, 1e3), st.floats(0, 1))
def test_between_points_a_fixed_cost_and_a_rate_are_found_again(
    fixed: float, rate: float, low: float, wide: float, share: float
) -> None:
    curve = Curve.of_rate(rate, fixed, (low, low * wide * 2))
    size = low * (wide * 2) ** share
    assert curve.seconds(size) == pytest.approx(fixed + size / rate, rel=1e-6)
    assert curve.seconds(np.array([size])) == pytest.approx([fixed + size / rate], rel=1e-6)


@given(curves(), surfaces)
def test_nothing_takes_no_time(curve: Curve, surface: Surface) -> None:
    assert curve.seconds(0) == surface.seconds(0, 1) == surface.seconds(1, 0) == 0


@given(curves(), sizes, st.floats(1e-3, 1e3))
def test_a_scaled_curve_takes_so_many_times_as_long(curve: Curve, size: float, factor: float) -> None:
    assert curve.scaled(factor).seconds(size) == pytest.approx(curve.seconds(size) * factor, rel=SMALL)


@given(surfaces, sizes)
def test_a_surface_is_its_curves_at_their_breadths(surface: Surface, size: float) -> None:
    for breadth, curve in surface.curves:
        assert surface.seconds(breadth, size) == pytest.approx(curve.seconds(size), rel=SMALL)


@given(surfaces, sizes, sizes, st.floats(1e-3, 1e3))
def test_a_scaled_surface_takes_so_many_times_as_long(
    surface: Surface, breadth: float, size: float, factor: float
) -> None:
    scaled = surface.scaled(factor).seconds(breadth, size)
    assert scaled == pytest.approx(surface.seconds(breadth, size) * factor, rel=1e-6)


@given(st.floats(1, 1e12), st.floats(0, 1), st.lists(st.integers(1, 1 << 40), min_size=1, unique=True))
def test_a_curve_of_a_rate_says_that_rate_and_its_fixed_cost(rate: float, fixed: float, at: list[int]) -> None:
    curve = Curve.of_rate(rate, fixed, sorted(at))
    for size in at:
        assert curve.seconds(size) == pytest.approx(fixed + size / rate, rel=SMALL)
        assert curve.per_s(size) == pytest.approx(size / (fixed + size / rate), rel=SMALL)


@given(curves(), surfaces)
def test_curves_and_surfaces_come_back_from_json(curve: Curve, surface: Surface) -> None:
    assert Curve.from_json("c", json.loads(json.dumps(curve.to_json()))) == curve
    assert Surface.from_json("s", json.loads(json.dumps(surface.to_json()))) == surface


def refused_in_a_line(made: type[Curve] | type[Surface], values: object) -> None:
    """What `values` are read as comes back from JSON; or they are refused in one line, and never otherwise."""
    refusal = "what"
    try:
        shape = made.from_json("what", values)
    except PolicyError as error:
        refusal = str(error)
    else:
        assert made.from_json("what", shape.to_json()) == shape
    assert refusal.startswith("what")
    assert "\n" not in refusal
    assert len(refusal) < 400


@given(jsons, st.sampled_from([Curve, Surface]))
def test_any_json_is_a_shape_or_one_line_that_names_it(values: object, made: type[Curve] | type[Surface]) -> None:
    refused_in_a_line(made, values)


@given(st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=4))
def test_any_numbers_are_points_or_one_line_that_names_them(points: list[list[float]]) -> None:
    refused_in_a_line(Curve, points)
    refused_in_a_line(Surface, [[1, points]])


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((1.0, 1.0), (1.0, 2.0)),
        ((2.0, 1.0), (1.0, 2.0)),
        ((1.0, 0.0),),
        ((0.0, 1.0),),
        ((1.0, float("nan")),),
        ((1.0, True),),
        ((10**400, 1.0),),
        tuple((float(size), 1.0) for size in range(1, POINTS_MOST + 2)),
    ],
    ids=["none", "same", "falling", "no time", "no size", "no number", "a truth", "no float", "too many"],
)
def test_a_curve_refuses(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(PolicyError):
        Curve(points)


@pytest.mark.parametrize("breadths", [(), (0.0,), (2.0, 1.0), (1.0, 1.0)])
def test_a_surface_refuses(breadths: tuple[float, ...]) -> None:
    with pytest.raises(PolicyError):
        Surface(tuple((breadth, Curve(((1.0, 1.0),))) for breadth in breadths))


def test_a_number_says_what_was_needed() -> None:
    with pytest.raises(PolicyError, match=r"^size must be a number above 2, found 2$"):
        check_number("size", 2, least=2, above=True)
    with pytest.raises(PolicyError, match=r"^size must be a number of at least 0, found '3'$"):
        check_number("size", "3")
    assert check_number("size", 0) == 0.0


@given(
    points=st.dictionaries(st.integers(1, 10**9), st.floats(1e-9, 1e3), min_size=1, max_size=6),
    sizes=st.lists(st.floats(0, 1e12), min_size=1, max_size=6),
    breadth=st.floats(0.5, 1e6),
)
def test_curves_over_arrays_are_curves(points: dict[int, float], sizes: list[float], breadth: float) -> None:
    curve = Curve(tuple(sorted((float(size), taken) for size, taken in points.items())))
    assert curve.seconds(np.array(sizes, np.float64)) == pytest.approx(
        [curve.seconds(size) for size in sizes], rel=1e-9
    )
    surface = Surface(((2.0, curve), (300.0, curve.scaled(3)), (4e4, curve.scaled(7))))
    expected = [surface.seconds(breadth, size) for size in sizes]
    assert surface.seconds(breadth, np.array(sizes, np.float64)) == pytest.approx(expected, rel=1e-9)
