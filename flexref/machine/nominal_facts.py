"""What is known of a machine without having it: figures, each with its source, in a JSON file; it knows no curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexref.errors import PolicyError
from flexref.units import GIB, is_number

NOMINAL_FORMAT = "flexref nominal machine 1"

LEAST, MOST = 1e-4, 1e7
"""Bound every figure that is no share: far below and above any machine, so that nothing computed from one overflows."""

OLDEST_CAPABILITY = 7.5
"""The CUDA port's kernels multiply on tensor cores as Turing has them."""

ASSUMED = "assumed"
"""Begins the source of a figure that nobody measured or published for this machine."""


@dataclass(frozen=True, slots=True)
class FigureKind:
    """What a figure is: its unit, what one of it is in bytes, seconds or FLOPs, and the values that it may have."""

    unit: str
    scale: float
    least: float = LEAST
    most: float = MOST


_GIB, _GB_PER_S, _SHARE = FigureKind("GiB", GIB), FigureKind("GB/s", 1e9), FigureKind("of the peak", 1.0, 1e-3, 1.0)
_RESERVED = FigureKind("GiB", GIB, 0.0)

FIGURES: Mapping[str, FigureKind] = {
    "compute_capability": FigureKind("CUDA compute capability", 1.0, OLDEST_CAPABILITY, 100.0),
    "device_memory": _GIB,
    "device_reserved": _RESERVED,
    "host_memory": _GIB,
    "host_reserved": _RESERVED,
    "disk": _GIB,
    "disk_reserved": _RESERVED,
    "device_memory_peak": _GB_PER_S,
    "device_memory_sustained": _SHARE,
    "matrix_peak": FigureKind("TFLOP/s", 1e12),
    "matrix_sustained": _SHARE,
    "link_in": _GB_PER_S,
    "link_out": _GB_PER_S,
    "link_in_beside_out": _GB_PER_S,
    "link_out_beside_in": _GB_PER_S,
    "disk_read": _GB_PER_S,
    "disk_write": _GB_PER_S,
    "host_memory_rate": _GB_PER_S,
    "host_attention": _GB_PER_S,
    "host_matrix": FigureKind("TFLOP/s", 1e12),
    "operator_call": FigureKind("us", 1e-6),
}
"""Every figure of a machine; flexref/data/machines/README.md says what each is."""

NOT_ABOVE = {
    "device_reserved": "device_memory",
    "host_reserved": "host_memory",
    "disk_reserved": "disk",
    "link_in_beside_out": "link_in",
    "link_out_beside_in": "link_out",
}
"""A part is no more than its whole, and a link no faster beside another than alone."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its unit, and where it is from."""

    value: float
    unit: str
    source: str

    @classmethod
    def from_mapping(cls, name: str, values: object) -> "Figure":
        """The figure `name` in a parsed JSON file; `PolicyError` says what is wrong with it."""
        if name not in FIGURES:
            raise PolicyError(f"unknown figure {_short(name)}; known: {', '.join(FIGURES)}")
        if not isinstance(values, dict) or sorted(values) != ["source", "unit", "value"]:
            raise PolicyError(f"{name} must be an object of value, unit and source, found {_short(values)}")
        value, unit, source = values["value"], values["unit"], values["source"]
        kind = FIGURES[name]
        if not is_number(value) or not kind.least <= value <= kind.most:
            needed = f"from {kind.least:g} to {kind.most:g}"
            raise PolicyError(f"{name}: value must be a number {needed}, found {_short(value)}")
        if unit != kind.unit:
            raise PolicyError(f"{name}: unit must be {kind.unit!r}, found {_short(unit)}")
        if not isinstance(source, str) or not source.strip():
            raise PolicyError(f"{name}: source must say where the value is from, found {_short(source)}")
        return cls(float(value), kind.unit, source)


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
        if values.get("format") != NOMINAL_FORMAT:
            raise PolicyError(f"{where}: format must be {NOMINAL_FORMAT!r}, found {_short(values.get('format'))}")
        if sorted(values) != ["about", "figures", "format", "name"]:
            raise PolicyError(
                f"{where}: must have the fields about, figures, format, name, found {_short(sorted(values))}"
            )
        for field in ("name", "about"):
            if not isinstance(values[field], str) or not values[field].strip():
                raise PolicyError(f"{where}: {field} must be text, found {_short(values[field])}")
        if not isinstance(values["figures"], dict):
            raise PolicyError(f"{where}: figures must be a JSON object, found {_short(values['figures'])}")
        try:
            figures = {name: Figure.from_mapping(name, figure) for name, figure in values["figures"].items()}
            return cls(values["name"], values["about"], figures)
        except PolicyError as error:
            raise PolicyError(f"{where}: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
