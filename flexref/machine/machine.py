"""What a machine does and holds, as far as the engine's speed depends on it; a JSON file; it measures nothing."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flexref.errors import PolicyError
from flexref.files import read_object, write_text
from flexref.machine.curves import Curve, Surface, check_number
from flexref.units import LINKS, TIERS, is_integer

FORMAT = "flexref machine 1"

WEIGHT_FILE = "weight file"
"""Names the reads of weights, which go past the page cache; other reads of the disk are those of a spill file."""

COPIES = (*LINKS, WEIGHT_FILE)

WIDTH_DIGITS = 6
"""Bounds the digits of a head width in the name of an attention curve."""

RESOURCES = (*LINKS, "compute")
"""What works at the same time: the links, and the device's operators."""


@dataclass(frozen=True, slots=True)
class Port:
    """What a plan must know of the port that the machine was measured with (see `backend.protocol.Capabilities`).

    `asynchronous`: operators run later than they are called, so that the host's own time overlaps with theirs.
    """

    name: str
    compute_dtype: str
    asynchronous: bool
    overlaps_copies: bool
    attends_on_host: bool
    scratch_bytes: int
    fused_rows: int


@dataclass(frozen=True, slots=True)
class HostSeconds:
    """What the engine's own work takes on the host, in seconds: beside the operators and copies that it starts.

    call: one operator. submission: one hand-over of copies to a lane. visit: the bookkeeping of one stage for one
    group. choice: the end of a group's pass, from its sampled tokens to its next pass; choice_row: of it, per row.
    """

    call: float
    submission: float
    visit: float
    choice: float
    choice_row: float


@dataclass(frozen=True, slots=True)
class Machine:
    """Capacities in bytes, and seconds over sizes, of one machine with one port.

    `copies`: by link (and `WEIGHT_FILE`), over the bytes of one copy. `beside[a][b]`: how many times as long a resource
    takes while another works too. `products`: by how the matrix is stored (a type, or a scheme), over its elements and
    the tokens that it is multiplied with, the bias included. `expansions`: by the same, over elements.

    Attention is by `attention_key`; in a decode pass over bytes of the records that are read, in a prefill over FLOPs.
    `operators`: by name, over bytes of the result (`sample`: logits; `token rows`: gathered on the host; `append KEY`:
    records). `sources` says where figures come from, `warnings` which ones are unstable.
    """

    name: str
    port: Port
    capacity_bytes: Mapping[str, int]
    copies: Mapping[str, Curve]
    beside: Mapping[str, Mapping[str, float]]
    products: Mapping[str, Surface]
    expansions: Mapping[str, Curve]
    decode_attention: Mapping[str, Curve]
    prefill_attention: Mapping[str, Curve]
    operators: Mapping[str, Curve]
    host_s: HostSeconds
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, needed in (("capacity_bytes", TIERS), ("copies", COPIES)):
            missing = [name for name in needed if name not in getattr(self, what)]
            if missing:
                raise PolicyError(f"machine {self.name!r}: {what} lacks {missing[0]!r}")
        if not self.products or not self.decode_attention or not self.prefill_attention:
            raise PolicyError(f"machine {self.name!r}: it has no products, or no attention")

    def changed(self, **changes: Any) -> "Machine":
        """This machine with some fields replaced."""
        return replace(self, **changes)

    def with_capacity(self, tier: str, nbytes: int) -> "Machine":
        """This machine with another capacity of `tier`."""
        return replace(self, capacity_bytes={**self.capacity_bytes, tier: nbytes})

    def with_faster_link(self, link: str, more_bytes_per_s: float) -> "Machine":
        """This machine with `more_bytes_per_s` on a link (or `WEIGHT_FILE`), at every size of a copy."""
        old = self.copies[link]
        points = tuple((size, size / (size / seconds + more_bytes_per_s)) for size, seconds in old.points)
        return replace(self, copies={**self.copies, link: Curve(points)})

    def slowdown(self, resource: str, other: str) -> float:
        """How many times as long `resource` takes for its work while `other` works; 1 where nothing is said."""
        return self.beside.get(resource, {}).get(other, 1.0)

    def to_mapping(self) -> dict[str, Any]:
        """The machine as what `json.dumps` takes."""
        values: dict[str, Any] = {"format": FORMAT}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in CURVED:
                value = {name: shape.to_json() for name, shape in value.items()}
            elif entry.name in ("port", "host_s"):
                value = asdict(value)
            elif entry.name == "warnings":
                value = list(value)
            elif isinstance(value, Mapping):
                value = {name: dict(part) if isinstance(part, Mapping) else part for name, part in value.items()}
            values[entry.name] = value
        return values

    def write(self, path: str | Path) -> None:
        """Write the machine as JSON; `StorageError` if it cannot be written."""
        write_text(path, json.dumps(self.to_mapping(), indent=1) + "\n", what="machine ")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> "Machine":
        """The machine that a parsed JSON object describes; `PolicyError` says what is wrong in `where`."""
        known = {entry.name for entry in fields(cls)}
        if values.get("format") != FORMAT:
            raise PolicyError(f"{where}: format must be {FORMAT!r}, found {values.get('format')!r}")
        given = {name: value for name, value in values.items() if name != "format"}
        unknown = sorted(set(given) - known)
        missing = sorted(known - set(given) - {"sources", "warnings"})
        if unknown or missing:
            complaint = f"unknown field {unknown[0]!r}" if unknown else f"field {missing[0]!r} is missing"
            raise PolicyError(f"{where}: {complaint}")
        try:
            return cls(**{name: READERS[name](name, value) for name, value in given.items()})
        except PolicyError as error:
            raise PolicyError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> "Machine":
        """The machine in the JSON file `path`; `StorageError` if it cannot be read, `PolicyError` if it is not one."""
        return cls.from_mapping(read_machine_object(path), str(path))


def read_machine_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a machine's file, of whichever format; errors as those of `Machine.read`."""
    return read_object(path, PolicyError, what="machine ", needed="must be a JSON object")


def attention_key(place: str, scheme: str, head_width: int) -> str:
    """The name of an attention curve: where it is computed (`device`, `host`), the cache's scheme, the head's width."""
    return f"{place} {scheme} {head_width}"


def nearest_attention(curves: Mapping[str, Curve], place: str, scheme: str, head_width: int) -> Curve:
    """The curve of that place and scheme whose head width is nearest; `PolicyError` if there is none."""
    start = f"{place} {scheme} "
    widths = [int(key[len(start) :]) for key in curves if key.startswith(start)]
    if not widths:
        raise PolicyError(f"the machine has no attention on {place} over a cache of scheme {scheme}")
    width = min(widths, key=lambda known: (abs(math.log(known / head_width)), known))
    return curves[attention_key(place, scheme, width)]


def _mapping(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyError(f"{what} must be a JSON object, found {type(value).__name__}")
    return value


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{what} must be text, found {value!r}")
    return value


def _texts(what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PolicyError(f"{what} must be a list of texts, found {value!r}")
    return tuple(_text(what, text) for text in value)


def _typed(what: str, value: object, made: type[Any]) -> Any:
    """An instance of a dataclass whose fields are text, truth values and numbers."""
    given = _mapping(what, value)
    names = [entry.name for entry in fields(made)]
    if sorted(given) != sorted(names):
        raise PolicyError(f"{what} must have the fields {', '.join(names)}, found {', '.join(sorted(given))}")
    checks: dict[str, Callable[[str, object], Any]] = {
        "str": _text,
        "bool": _truth,
        "int": _count,
        "float": check_number,
    }
    kinds = {entry.name: entry.type if isinstance(entry.type, str) else entry.type.__name__ for entry in fields(made)}
    return made(**{name: checks[kinds[name]](f"{what}.{name}", given[name]) for name in names})


def _truth(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(f"{what} must be true or false, found {value!r}")
    return value


def _count(what: str, value: object) -> int:
    if not is_integer(value) or not 0 <= value < 1 << 62:
        raise PolicyError(f"{what} must be a whole number of at least 0, found {value!r}")
    return value


def _curves(what: str, value: object) -> dict[str, Curve]:
    return {name: Curve.from_json(f"{what}.{name}", curve) for name, curve in _mapping(what, value).items()}


def _attention_curves(what: str, value: object) -> dict[str, Curve]:
    curves = _curves(what, value)
    for key in curves:
        parts = key.split(" ")
        named = len(parts) == 3 and parts[0] in ("device", "host") and parts[2].isdecimal()
        if not named or len(parts[2]) > WIDTH_DIGITS or not int(parts[2]):
            raise PolicyError(f"{what} must be named by place, scheme and head width, found {key[:60]!r}")
    return curves


def _surfaces(what: str, value: object) -> dict[str, Surface]:
    return {name: Surface.from_json(f"{what}.{name}", surface) for name, surface in _mapping(what, value).items()}


def _capacities(what: str, value: object) -> dict[str, int]:
    return {tier: _count(f"{what}.{tier}", count) for tier, count in _mapping(what, value).items()}


def _beside(what: str, value: object) -> dict[str, dict[str, float]]:
    found = {}
    for resource, others in _mapping(what, value).items():
        found[resource] = {
            other: check_number(f"{what}.{resource}.{other}", factor, least=1.0)
            for other, factor in _mapping(f"{what}.{resource}", others).items()
        }
        strange = sorted({resource, *others} - set(RESOURCES))
        if strange:
            raise PolicyError(f"{what}: unknown resource {strange[0]!r}; known: {', '.join(RESOURCES)}")
    return found


CURVED = ("copies", "products", "expansions", "decode_attention", "prefill_attention", "operators")
"""Fields whose values are curves or surfaces."""

READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "port": lambda what, value: _typed(what, value, Port),
    "capacity_bytes": _capacities,
    "copies": _curves,
    "beside": _beside,
    "products": _surfaces,
    "expansions": _curves,
    "decode_attention": _attention_curves,
    "prefill_attention": _attention_curves,
    "operators": _curves,
    "host_s": lambda what, value: _typed(what, value, HostSeconds),
    "sources": lambda what, value: {
        name: _text(f"{what}.{name}", text) for name, text in _mapping(what, value).items()
    },
    "warnings": _texts,
}
"""How each field is read from JSON."""
