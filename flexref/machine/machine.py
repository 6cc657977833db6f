"""What a machine does and holds, as far as the engine's speed depends on it; a JSON file; it measures nothing."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from flexref.errors import PolicyError
from flexref.files import read_object, write_text
from flexref.json_types.containers import MapOf
from flexref.json_types.objects import object_of
from flexref.json_types.values import Number, OneOf, Whole, shown
from flexref.machine.curves import CURVE, SECONDS_MOST, SURFACE, Curve, Surface
from flexref.machine.quality import Quality
from flexref.policy import CACHE_SCHEMES
from flexref.units import DTYPE_BYTES, LINKS, TIERS

FORMAT = "flexref machine 1"

WEIGHT_FILE = "weight file"
"""Names the reads of weights, which go past the page cache; other reads of the disk are those of a spill file."""

COPIES = (*LINKS, WEIGHT_FILE)

WIDTH_DIGITS = 6
"""Bounds the digits of a head width in the name of an attention curve."""

COMPUTE = "compute"
"""The device's operators."""

HOST_ATTENTION: Mapping[str, str] = MappingProxyType({scheme: f"host_attention {scheme}" for scheme in CACHE_SCHEMES})
"""Attention on the host beside them, by the scheme of the cache: it may be limited by memory with one and by its own
arithmetic with another."""

RESOURCES = (*LINKS, COMPUTE, *HOST_ATTENTION.values())
"""What works at the same time."""

ONE_PROCESSOR = 2.0
"""How many times as long operators and attention on the host take beside each other where one processor does both, and
nobody has measured it: as if they took turns."""

COUNT = Whole(0, (1 << 62) - 1, said="a whole number of at least 0")

SECONDS = Number(0, SECONDS_MOST)

COMPUTE_DTYPES = tuple(dtype for dtype in DTYPE_BYTES if dtype.startswith("float"))
"""The types that a port may compute in: a plan must know their bytes."""

ATTENTION = MapOf(
    CURVE,
    pattern=f"(device|host) [^ ]* [1-9][0-9]{{0,{WIDTH_DIGITS - 1}}}",
    noun="place, scheme and head width",
)
"""Curves by `attention_key`."""


@dataclass(frozen=True, slots=True)
class Port:
    """What a plan must know of the port that the machine was measured with (see `backend.protocol.Capabilities`)."""

    name: Annotated[str, "Its name, as --backend takes it."]
    compute_dtype: Annotated[str, OneOf(COMPUTE_DTYPES), "The type that it computes in."]
    asynchronous: Annotated[bool, "Whether operators run later than they are called, so that the host works meanwhile."]
    overlaps_copies: Annotated[bool, "Whether copies go on while it computes."]
    attends_on_host: Annotated[bool, "Whether it can compute attention on the host."]
    scratch_bytes: Annotated[int, COUNT, "Bytes on the device that its operators need for themselves."]
    fused_rows: Annotated[int, COUNT, "Tokens up to which a product reads a matrix in groups as it is stored."]
    one_memory: Annotated[bool, "Whether device and host are one memory, worked on by one processor."] = False
    recorded_bytes: Annotated[int, COUNT, "Of scratch_bytes, what is for recorded operators; 0: none are recorded."] = 0
    recording_bytes: Annotated[int, COUNT, "What of recorded_bytes one recording counts for."] = 0
    recorded_call_bytes: Annotated[int, COUNT, "Beside that, what every operator in it counts for."] = 0


@dataclass(frozen=True, slots=True)
class HostSeconds:
    """What the engine's own work takes on the host, in seconds: beside the operators and copies that it starts."""

    call: Annotated[float, SECONDS, "For one operator."]
    submission: Annotated[float, SECONDS, "For one hand-over of copies to a lane."]
    visit: Annotated[float, SECONDS, "For the bookkeeping of one stage for one group."]
    choice: Annotated[float, SECONDS, "From a group's sampled tokens to its next pass."]
    choice_row: Annotated[float, SECONDS, "Of that, for every row."]
    replay: Annotated[float, SECONDS, "For recorded operators that are replayed together."] = 0.0
    record: Annotated[float, SECONDS, "For one operator that is recorded, until it can be replayed."] = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Capacities in bytes, and seconds over sizes, of one machine with one port.

    `copies`: by link (and `WEIGHT_FILE`), over the bytes of one copy. `beside[a][b]`: how many times as long a resource
    takes while another works too. `products`: by how the matrix is stored (a type, or a scheme), over its elements and
    the tokens that it is multiplied with, the bias included. `expansions`: by the same, over elements.

    Attention is by `attention_key`; in a decode pass over bytes of the records that are read, in a prefill over FLOPs.
    `operators`: by name, over bytes of the result (`sample`: logits; `token rows`: gathered on the host; `append KEY`:
    records). `sources` says where figures come from, `warnings` which ones are unstable, `quality` how it was measured.
    """

    name: Annotated[str, "What the machine is called."]
    port: Annotated[Port, "The port that it was measured with."]
    capacity_bytes: Annotated[Mapping[str, int], MapOf(COUNT, needs=TIERS), "Bytes that each tier holds."]
    copies: Annotated[Mapping[str, Curve], MapOf(CURVE, needs=COPIES), "Seconds of a copy over its bytes, by link."]
    beside: Annotated[
        Mapping[str, Mapping[str, float]],
        MapOf(MapOf(Number(1), RESOURCES, noun="resource"), RESOURCES, noun="resource"),
        "How many times as long a resource takes while another one works too.",
    ]
    products: Annotated[
        Mapping[str, Surface],
        MapOf(SURFACE),
        "Seconds of a product over the matrix' elements and the tokens, by how the matrix is stored.",
    ]
    expansions: Annotated[
        Mapping[str, Curve], MapOf(CURVE), "Seconds to expand a matrix over its elements, by how it is stored."
    ]
    decode_attention: Annotated[
        Mapping[str, Curve], ATTENTION, "Seconds in a decode pass over bytes of records read, by place, scheme, width."
    ]
    prefill_attention: Annotated[
        Mapping[str, Curve], ATTENTION, "Seconds in a prefill over FLOPs, by place, scheme and head width."
    ]
    operators: Annotated[
        Mapping[str, Curve], MapOf(CURVE), "Seconds of every other operator over bytes of its result, by name."
    ]
    host_s: Annotated[HostSeconds, "Seconds of the engine's own work on the host."]
    sources: Annotated[Mapping[str, str], "Where figures come from."] = field(default_factory=dict)
    warnings: Annotated[tuple[str, ...], "Which figures are unstable or assumed."] = ()
    quality: Annotated[Quality | None, "How it was measured; null where that is not known."] = None

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

    def with_slower_link(self, link: str, bytes_per_s: float) -> "Machine":
        """This machine with at most so many bytes per second on a link; what a copy costs beside that stays."""
        old = self.copies[link]
        more_s = max(0.0, 1 / bytes_per_s - min(seconds / size for size, seconds in old.points))
        points = tuple((size, seconds + size * more_s) for size, seconds in old.points)
        return replace(self, copies={**self.copies, link: Curve(points)})

    def slowdown(self, resource: str, other: str) -> float:
        """How many times as long `resource` takes for its work while `other` works; 1 where nothing is said, or
        `ONE_PROCESSOR`."""
        both = {resource, other}
        turns = self.port.one_memory and COMPUTE in both and not both.isdisjoint(HOST_ATTENTION.values())
        return self.beside.get(resource, {}).get(other, ONE_PROCESSOR if turns else 1.0)

    def to_mapping(self) -> dict[str, Any]:
        """The machine as what `json.dumps` takes."""
        values: dict[str, Any] = {"format": FORMAT}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in CURVED:
                value = {name: shape.to_json() for name, shape in value.items()}
            elif entry.name in ("port", "host_s"):
                value = asdict(value)
            elif entry.name == "quality":
                value = None if value is None else asdict(value)
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
        if values.get("format") != FORMAT:
            raise PolicyError(f"{where}: format must be {FORMAT!r}, found {shown(values.get('format'))}")
        given = {name: value for name, value in values.items() if name != "format"}
        members = object_of(cls).read_members(f"{where}: ", given, PolicyError)
        try:
            return cls(**members)
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


CURVED = ("copies", "products", "expansions", "decode_attention", "prefill_attention", "operators")
"""Fields whose values are curves or surfaces."""
