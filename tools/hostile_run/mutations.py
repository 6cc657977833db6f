"""Damage that is drawn at random: to bytes, to values of JSON, and to what lies under a name; it knows no format."""

import json
import os
import socket
from pathlib import Path
from random import Random
from typing import Any

ODD_NUMBERS = (0, -1, 1, 2, 63, 64, 255, 1 << 31, (1 << 31) - 1, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**30)
ODD_FLOATS = (0.5, -0.0, 1e-320, 1e308, 1e400, -1e400, float("nan"))
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "é",
    "🙂",
    "\ud800",
    "../../x",
    "/dev/zero",
    "%s%n",
    "{}",
    "x" * 5000,
    "-1",
    "nan",
)
LONG_DIGITS = 5000
"""More than Python turns into a number (4,300)."""
DEEP = 200_000


def odd_value(draw: Random) -> Any:
    """A value that stands in few documents on purpose."""
    return draw.choice(
        (
            draw.choice(ODD_NUMBERS),
            draw.choice(ODD_FLOATS),
            draw.choice(ODD_TEXTS),
            draw.choice((None, True, False)),
            [draw.choice(ODD_NUMBERS)] * draw.choice((0, 1, 1000)),
            {draw.choice(ODD_TEXTS): draw.choice(ODD_NUMBERS)},
            [[[[]]]],
        )
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside `value`, its own left out."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, child in inside:
        found.append((*path, key))
        found += places(child, (*path, key))
    return found


def changed_value(draw: Random, value: Any) -> Any:
    """A copy of a JSON value in which something is replaced, removed, doubled, renamed or put in."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(value)
        if not found or draw.random() < 0.03:
            return odd_value(draw)
        place = draw.choice(found)
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        key, how = place[-1], draw.randrange(6)
        if how <= 2:
            holder[key] = odd_value(draw)
        elif how == 3:
            holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), draw.choice((odd_value(draw), holder[key])))
        elif how == 4:
            holder[draw.choice(ODD_TEXTS)] = holder.pop(key)
        else:
            other = draw.choice(found)
            holder[key] = other[-1]
    return value


def json_bytes(draw: Random, value: Any) -> bytes:
    """A JSON value, changed or whole, as a document that may be wrong as JSON too."""
    text = json.dumps(changed_value(draw, value) if draw.random() < 0.75 else value)
    how = draw.randrange(12)
    if how == 0:
        text = text.replace(": ", ': "x", "y": ', 1)
    elif how == 1:
        digits = "9" * LONG_DIGITS
        at = draw.choice([place for place, letter in enumerate(text) if letter.isdigit()] or [0])
        text = text[:at] + digits + text[at + 1 :]
    elif how == 2:
        opened = draw.choice(("[", '{"a":'))
        text = opened * DEEP + draw.choice(("", text))
    elif how == 3:
        return changed_bytes(draw, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")


def changed_bytes(draw: Random, data: bytes) -> bytes:
    """Bytes with bits flipped, pieces lost, moved, repeated, wiped or put in, or something else altogether."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        length = len(content)
        first = draw.randrange(length + 1)
        count = min(draw.choice((1, 2, 8, 64, 512, 4096, length)), length - first)
        how = draw.randrange(10)
        if how <= 2 and length:
            for _ in range(draw.choice((1, 1, 3, 40))):
                content[draw.randrange(length)] ^= 1 << draw.randrange(8)
        elif how == 3:
            del content[first:]
        elif how == 4:
            del content[first : first + count]
        elif how == 5:
            content[first : first + count] = bytes(count)
        elif how == 6:
            content[first:first] = content[first : first + count]
        elif how == 7:
            content[first:first] = draw.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\x1b[2J", b"\xc3"))
        elif how == 8:
            content += draw.randbytes(draw.choice((1, 64, 4096)))
        elif length > 2:
            to = draw.randrange(length)
            piece = content[first : first + count]
            content[to : to + len(piece)] = piece
    if draw.random() < 0.03:
        return draw.choice((b"", draw.randbytes(5000), bytes(10_000), b"\xff" * 10_000_000))
    return bytes(content)


def odd_file(draw: Random, path: Path) -> None:
    """Put something at `path` that is no file, or none that can be read."""
    path.unlink(missing_ok=True)
    what = draw.choice(("nothing", "pipe", "zero", "random", "folder", "circle", "dangling", "socket", "self"))
    if what == "pipe":
        os.mkfifo(path)
    elif what in ("zero", "random"):
        path.symlink_to(f"/dev/{what}")
    elif what == "folder":
        path.mkdir()
    elif what == "circle":
        other = path.with_name(f"{path.name}.other")
        path.symlink_to(other.name)
        other.symlink_to(path.name)
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "socket":
        short = path.with_name("s")  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.getcwd()
            os.chdir(path.parent)
            try:
                bound.bind(short.name)
            finally:
                os.chdir(here)
        short.rename(path)
    elif what == "self":
        path.symlink_to("/proc/self/mem")
