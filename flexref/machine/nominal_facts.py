"""What is known of a machine without having it: figures, each with its source, in a JSON file; it knows no curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexref.errors import PolicyError
from flexref.json_types.containers import ReadBy
from flexref.json_types.objects import JsonField, JsonObject
from flexref.json_types.values import Number, OneOf, Text, shown
from flexref.units import GIB, GIGA

NOMINAL_FORMAT = "flexref nominal machine 1"

LEAST, MOST = 1e-4, 1e7
"""Bound every figure that is no share: far below and above any machine, so that nothing computed from one overflows."""

OLDEST_CAPABILITY = 7.5
"""The CUDA port's kernels multiply on tensor cores as Turing has them."""

ASSUMED = "assumed"
"""Begins the source of a figure that nobody measured or published for this machine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its unit, and where it is from."""

    value: float
    unit: str
    source: str


def _source(what: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PolicyError(f"{what} must say where the value is from, found {shown(value)}")
    return value


@dataclass(frozen=True, slots=True)
class FigureKind:
    """What a figure is, its unit, what one of it is in bytes, seconds or FLOPs, and the values that it may have."""

    about: str
    unit: str
    scale: float
    least: float = LEAST
    most: float = MOST

    def in_json(self) -> JsonField:
        """It in a file: a number with its unit and source, read as a `Figure`."""
        members = {
            "value": JsonField(Number(self.least, self.most), f"The figure, in the unit {self.unit}."),
            "unit": JsonField(OneOf((self.unit,)), "Its unit."),
            "source": JsonField(ReadBy(Text(filled=True), _source), f"Where it is from; {ASSUMED!r} begins a guess."),
        }
        return JsonField(JsonObject("", "", members, Figure, "an object of value, unit and source", ": "), self.about)


def _gib(about: str, least: float = LEAST) -> FigureKind:
    return FigureKind(about, "GiB", GIB, least)


def _gb_per_s(about: str) -> FigureKind:
    return FigureKind(about, "GB/s", GIGA)


def _share(about: str) -> FigureKind:
    return FigureKind(about, "of the peak", 1.0, 1e-3, 1.0)


def _teraflops(about: str) -> FigureKind:
    return FigureKind(about, "TFLOP/s", 1e12)


FIGURES: Mapping[str, FigureKind] = {
    "compute_capability": FigureKind(
        "The oldest tensor cores that the kernels are made for are 7.5.",
        "CUDA compute capability",
        1.0,
        OLDEST_CAPABILITY,
        100.0,
    ),
    "device_memory": _gib("What CUDA reports as the device's total memory."),
    "device_reserved": _gib("What of it context and code take.", 0.0),
    "host_memory": _gib("The machine's memory."),
    "host_reserved": _gib("What of it system and process take.", 0.0),
    "disk": _gib("The disk's room."),
    "disk_reserved": _gib("What of it is not to be used.", 0.0),
    "device_memory_peak": _gb_per_s("The data sheet's rate of the device's memory."),
    "device_memory_sustained": _share("The share of that rate that a large copy reaches, both directions counted."),
    "matrix_peak": _teraflops("The data sheet's rate of dense float16 products with float32 sums."),
    "matrix_sustained": _share("The share of that rate that large products keep up."),
    "link_in": _gb_per_s("Large copies from pinned host memory to the device, as measured."),
    "link_out": _gb_per_s("Large copies from the device to pinned host memory, as measured."),
    "link_in_beside_out": _gb_per_s("Copies to the device while others leave it."),
    "link_out_beside_in": _gb_per_s("Copies from the device while others come to it."),
    "disk_read": _gb_per_s("Large reads, several at a time, past the page cache."),
    "disk_write": _gb_per_s("Large writes, several at a time, past the page cache."),
    "host_memory_rate": _gb_per_s("The host's memory, by the cores that the machine has."),
    "host_attention": _gb_per_s("Float16 records that attention on the host gets through in decode, as its cores go."),
    "host_matrix": _teraflops("Float32 products, for attention on the host in a prefill."),
    "operator_call": FigureKind("What Python and driver take for one operator.", "us", 1e-6),
}
"""Every figure of a machine; flexref/data/machines/README.md says more of each."""

FIGURES_IN_FILE = JsonObject("", "", {name: kind.in_json() for name, kind in FIGURES.items()})


def _figures(what: str, values: object) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise PolicyError(f"{what} must be a JSON object, found {shown(values)}")
    return FIGURES_IN_FILE.read_members(what.removesuffix("figures"), values, PolicyError, "figure")


FILLED = Text(filled=True)

NOMINAL_FILE = JsonObject(
    "NominalMachine",
    "A machine that is known without having it, as data sheets and other people's measurements describe it.",
    {
        "about": JsonField(FILLED, "What machine it is."),
        "figures": JsonField(ReadBy(FIGURES_IN_FILE, _figures), "What is known of it; every figure with its source."),
        "format": JsonField(OneOf((NOMINAL_FORMAT,)), "Names this format and its version."),
        "name": JsonField(FILLED, "What the machine is called."),
    },
)
"""A file of such facts."""

NOT_ABOVE = {
    "device_reserved": "device_memory",
    "host_reserved": "host_memory",
    "disk_reserved": "disk",
    "link_in_beside_out": "link_in",
    "link_out_beside_in": "link_out",
}
"""A part is no more than its whole, and a link no faster beside another than alone."""


@dataclass(frozen=True, slots=True)
class NominalFacts:
    """A machine as its data sheet, its provider and other people's measurements describe it."""

    name: str
    about: str
    figures: Mapping[str, Figure]

    def __post_init__(self) -> None:
        missing = [name for name in FIGURES if name not in self.figures]
        if missing:
            raise PolicyError(f"figure {missing[0]!r} is missing")
        for part, whole in NOT_ABOVE.items():
            found, most = self.figures[part].value, self.figures[whole].value
            if found > most or (part.endswith("reserved") and found == most):
                raise PolicyError(f"{part} must be at most {whole} ({most:g} {FIGURES[whole].unit}), found {found:g}")

    def __getitem__(self, name: str) -> float:
        """A figure in bytes, seconds, FLOPs or as it is: see `FIGURES`."""
        return self.figures[name].value * FIGURES[name].scale

    def assumed(self) -> tuple[str, ...]:
        """Names of the figures that have no better source than an assumption."""
        return tuple(name for name in FIGURES if self.figures[name].source.lower().startswith(ASSUMED))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> "NominalFacts":
        """The facts in a parsed JSON object; `PolicyError` says what is wrong in `where`."""
        NOMINAL_FILE.members["format"].kind.read(f"{where}: format", values.get("format"), PolicyError)
        NOMINAL_FILE.check_names(f"{where}:", values, PolicyError)
        found = NOMINAL_FILE.read_members(f"{where}: ", values, PolicyError)
        try:
            return cls(found["name"], found["about"], found["figures"])
        except PolicyError as error:
            raise PolicyError(f"{where}: {error}") from error
