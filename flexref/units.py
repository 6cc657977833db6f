"""Words and units that all parts share: tiers, links, kinds of data, types and their bytes; it knows no part."""

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeGuard

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
"""Bytes of binary units."""

GIGA = 1e9
"""Bytes or operations of a decimal unit: 1 GB/s, 1 GFLOP/s."""


class Tier(str, Enum):
    """Where bytes may lie."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"

    __hash__ = str.__hash__  # Enum's own is written in Python, and every pass looks up thousands of them


TIERS = ("device", "host", "disk")
"""The names of all tiers, from the fastest to the largest."""

LINKS = ("host->device", "device->host", "disk->host", "host->disk")
"""The four ways between neighbouring tiers."""

LINK_OF: Mapping[tuple[Tier, Tier], str] = MappingProxyType(
    {
        (Tier.DISK, Tier.HOST): "disk->host",
        (Tier.HOST, Tier.DEVICE): "host->device",
        (Tier.DEVICE, Tier.HOST): "device->host",
        (Tier.HOST, Tier.DISK): "host->disk",
    }
)
"""The link from one tier to another, in the order in which reports list them; disk to device takes two copies."""


class Kind(str, Enum):
    """What lies on tiers and goes over links."""

    WEIGHTS = "weights"
    CACHE = "cache"
    ACTIVATIONS = "activations"

    __str__ = str.__str__
    __hash__ = str.__hash__  # as `Tier`


KINDS = ("weights", "cache", "activations")
"""The names of all kinds of data."""

SLOTS_OVERLAPPED, SLOTS_SERIAL = 2, 1
"""Streamed data under way at a time: one in use and one arriving, or just the one."""


def slots_of(overlap: bool) -> int:
    """How many stages' or visits' streamed data may be under way at a time."""
    return SLOTS_OVERLAPPED if overlap else SLOTS_SERIAL


DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "uint8": 1, "int32": 4})
"""Bytes of an element of the types that arrays may have."""

LOGITS_DTYPE = "float32"
"""Logits are never rounded to a narrower type: sampling compares them."""

LOGITS_BYTES = DTYPE_BYTES[LOGITS_DTYPE]

STORED_BYTES: Mapping[str, float] = MappingProxyType({"float16": 2.0, "float32": 4.0, "int4": 0.5625, "int8": 1.0625})
"""Bytes of an element of a matrix by how it is stored; groups are of 64, with a scale and a zero in float16 each."""

ALIGNMENT_BYTES = 4096
"""Every region of memory and every dataset of a file starts at a multiple of it: direct disk reads need that, vector
loads need less."""


SPILL_BOUNCE_BYTES = 512 * KIB
"""Host memory of one spill file, through which goes what is not aligned as direct reads and writes need it."""


def aligned(nbytes: int, alignment: int = ALIGNMENT_BYTES) -> int:
    """The smallest multiple of `alignment` that is at least `nbytes`."""
    return -(-nbytes // alignment) * alignment


def page_bytes(offset: int, nbytes: int) -> int:
    """Bytes of all the pages of a file in which some of `nbytes` from `offset` on lie."""
    return aligned(offset + nbytes, ALIGNMENT_BYTES) - offset // ALIGNMENT_BYTES * ALIGNMENT_BYTES if nbytes else 0


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def plain_integers(values: Iterable[Any]) -> tuple[Any, ...]:
    """`values`, with whole numbers of numpy or torch among them as ints; what is no whole number stays as it is."""
    return tuple(value if type(value) is int or not hasattr(value, "__index__") else _index(value) for value in values)


def _index(value: Any) -> Any:
    try:
        return value if isinstance(value, bool) else value.__index__()
    except TypeError:  # an array of several has the method, and no number
        return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a number, neither infinite nor NaN, and no integer beyond every float."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False
