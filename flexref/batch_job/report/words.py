"""Figures of a report as people read them: counts, rates, bytes, durations, times, money; it knows no page."""

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

from flexref.errors import BINARY_UNITS

NOT_KNOWN = "not known"

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What has no place in an HTML file: control characters, and halves of pairs that UTF-8 cannot hold."""

SIZES_SHOWN = (("TiB", 1 << 40), *BINARY_UNITS)
"""Units of bytes, the largest first: a long job moves many TiB."""

DIGITS_WHOLE = 100
"""From here on a figure is shown without decimals."""


def printable(value: Any) -> Any:
    """A text without what no page can hold; what is no plain text, as markup that was made of such, as it is."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def count(value: float | None) -> str:
    """A whole number, its thousands apart."""
    return NOT_KNOWN if value is None else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """A number to three digits, or whole."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    return f"{value:,.0f}" if abs(value) >= DIGITS_WHOLE else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share as a percentage: 100 % only if it is all."""
    if value is None:
        return NOT_KNOWN
    percent = 100 * value
    text = f"{percent:.0f}" if percent >= 10 or percent == 0 else f"{percent:.2g}"
    return f"{'99.9' if text == '100' and value < 1 else text} %"


def size(value: float | None) -> str:
    """Bytes in the largest binary unit that they fill."""
    if value is None:
        return NOT_KNOWN
    for unit, nbytes in SIZES_SHOWN:
        if value >= nbytes:
            return f"{figure(value / nbytes)} {unit}"
    return f"{value:,.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that say something: `0.35 s`, `12 s`, `3 min 20 s`, `1 h 4 min`, `2 d 5 h`."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 9.95:
        return f"{max(0.0, seconds):.2g} s"
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def moment(time: datetime) -> str:
    """A point in time, in UTC."""
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def money(usd: float | None) -> str:
    """Dollars: to the cent, or three digits of what is less than ten cents."""
    if usd is None:
        return NOT_KNOWN
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.3g}"


def details(values: Mapping[str, Any]) -> str:
    """What an event says beside its text: `name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


FILTERS = MappingProxyType(
    {
        "count": count,
        "figure": figure,
        "share": share,
        "size": size,
        "duration": duration,
        "moment": moment,
        "money": money,
        "details": details,
    }
)
"""By the name under which a template knows them."""
