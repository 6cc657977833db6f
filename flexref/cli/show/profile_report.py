"""A measured machine as tables for people: rates at sizes, with their units; it measures nothing."""

import time
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console

from flexref.cli.show.console import FRAME, FilledTable, print_named
from flexref.cli.streams import printable
from flexref.errors import how_many, in_gib
from flexref.machine.curves import Curve
from flexref.machine.machine import RESOURCES, Machine
from flexref.machine.quality import age_in_words
from flexref.units import TIERS

COLUMNS_MOST = 8
"""Bounds the sizes that a table shows; the file holds all of them."""

NUMBER_LETTERS = 7
"""Of the longest number."""

ALIKE = 1.15
"""Sizes that differ by less share a column."""


def print_machine(console: Console, machine: Machine) -> None:
    """Print what was measured, of what, and what is unstable."""
    console.print(printable(machine.name), highlight=False)
    free = ", ".join(f"{tier} {in_gib(machine.capacity_bytes[tier])}" for tier in TIERS)
    how = "asynchronous" if machine.port.asynchronous else "not asynchronous"
    console.print(f"free: {free}; computes in {machine.port.compute_dtype}, {how}", highlight=False)
    for table in (_links, _products, _memory_rates, _prefill):
        console.print(table(machine, console.width))
    print_named(console, _beside(machine), max(map(len, RESOURCES)))
    host, replays = machine.host_s, ""
    if machine.port.recorded_bytes:
        replays = f"; a replay {_us(host.replay)}, and {_us(host.record)} for each operator that is recorded"
    console.print(
        f"the host's own work: an operator's call {_us(host.call)}, a submission {_us(host.submission)}, a visit "
        f"{_us(host.visit)}, a choice {_us(host.choice)} and {_us(host.choice_row)} per row{replays}",
        highlight=False,
    )
    for about, text in machine.sources.items():
        console.print(f"{about}: {text}", highlight=False)
    if machine.quality is not None:
        age = age_in_words(machine.quality.age_s(time.time()))
        console.print(f"measured {age} ago: {machine.quality.in_words}", highlight=False)
    if machine.warnings:
        console.print(f"not certain: {how_many(len(machine.warnings), 'figure')}, named by --json", highlight=False)


def _links(machine: Machine, width: int) -> FilledTable:
    """GB/s of every link, at sizes of one copy."""
    return _rates("Links, GB/s by bytes of a copy", "link", machine.copies, (1e9, width))


def _rates(title: str, kind: str, curves: Mapping[str, Curve], unit_and_width: tuple[float, int]) -> FilledTable:
    """Size per second over sizes, for curves that need not have the same points: a column is a size of any."""
    unit, width = unit_and_width
    most = _columns(width, curves)
    sizes = _some(sorted({size for curve in curves.values() for size, _ in curve.points}), most)
    rows = []
    for name, curve in curves.items():
        cells = []
        for size in sizes:
            inside = curve.points[0][0] / ALIKE <= size <= curve.points[-1][0] * ALIKE
            cells.append(_number(curve.per_s(size) / unit) if inside else "")
        rows.append((name, *cells))
    return FilledTable(title, (kind, *map(_size, sizes)), rows)


def _beside(machine: Machine) -> Iterator[tuple[str, str]]:
    """How many times as long each resource takes while another works, where that is not once."""
    for name in RESOURCES:
        factors = {other: machine.slowdown(name, other) for other in RESOURCES}
        slower = [f"{factor:.2f} times as long while {other} works" for other, factor in factors.items() if factor != 1]
        if slower:
            yield name, ", ".join(slower)


def _products(machine: Machine, width: int) -> FilledTable:
    """TFLOP/s of products, by how the matrix is stored and its width, over tokens."""
    surfaces = machine.products
    names = [f"{stored} {elements**0.5:.0f}" for stored, surface in surfaces.items() for elements, _ in surface.curves]
    curves = [curve for surface in surfaces.values() for _, curve in surface.curves]
    tokens = _some(sorted({size for curve in curves for size, _ in curve.points}), _columns(width, names))
    rows = []
    for stored, surface in surfaces.items():
        for elements, curve in surface.curves:
            cells = []
            for count in tokens:
                known = count <= curve.points[-1][0]
                cells.append(_number(2 * elements * count / curve.seconds(count) / 1e12) if known else "")
            rows.append((f"{stored} {elements**0.5:.0f}", *cells))
    return FilledTable("Products, TFLOP/s by tokens", ("matrices, width", *(f"{count:g}" for count in tokens)), rows)


def _memory_rates(machine: Machine, width: int) -> FilledTable:
    """GB/s of operators by their bytes, and of decode attention by those of the records that it reads."""
    expansions = {
        f"expand {stored}": Curve(tuple((2 * elements, seconds) for elements, seconds in curve.points))
        for stored, curve in machine.expansions.items()
    }
    decode = {f"decode attention, {key}": curve for key, curve in machine.decode_attention.items()}
    title = "Operators, GB/s by bytes (expand: 2 per element; attention: of the records)"
    return _rates(title, "operator", {**machine.operators, **expansions, **decode}, (1e9, width))


def _prefill(machine: Machine, width: int) -> FilledTable:
    """TFLOP/s of prefill attention by FLOPs."""
    return _rates("Prefill attention, TFLOP/s by FLOPs", "attention", machine.prefill_attention, (1e12, width))


def _columns(width: int, names: Iterable[str]) -> int:
    """How many sizes a table has room for on lines of `width` letters, beside the longest name."""
    left = width - 1 - max(map(len, names), default=0) - FRAME
    return max(1, min(COLUMNS_MOST, left // (NUMBER_LETTERS + FRAME)))


def _some(sizes: list[float], most: int) -> list[float]:
    """Those that differ, at most so many of them, evenly, the first among them."""
    differing = sizes[:1]
    for size in sizes:
        if size > differing[-1] * ALIKE:
            differing.append(size)
    if len(differing) <= most:
        return differing
    return [differing[round(place * (len(differing) - 1) / max(1, most - 1))] for place in range(most)]


def _size(size: float) -> str:
    """A size with a decimal prefix, short enough for a column: 65.5k, 16.8M, 4.3G."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return f"{size:g}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us"
