"""A reader for the text inside an R package's lazy-load database; it knows strings, numbers and lists and no other R.

Source of the format: R Internals, sections 1.8 (serialization) and 1.12 (lazy-load databases).
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path

Value = None | str | list["Value"] | dict[str, "Value"]

_NIL, _GLOBAL, _BASE, _EMPTY = 254, 253, 241, 242
_SYMBOL, _PAIRLIST, _CHARS, _LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST, _REFERENCE = 1, 2, 9, 10, 13, 14, 16, 19, 255
_HAS_ATTRIBUTES, _HAS_TAG = 1 << 9, 1 << 10


class _Reader:
    """One pass over an uncompressed XDR stream."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._symbols: list[Value] = []
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialization")
        self._at = 2
        version = self._int()
        self._at += 8
        if version == 3:  # version 3 names its native encoding
            length = self._int()
            self._at += length

    def _int(self) -> int:
        (value,) = struct.unpack_from(">i", self._data, self._at)
        self._at += 4
        return int(value)

    def _pairs(self, flags: int) -> dict[str, Value]:
        """A pairlist, its tags as keys; attributes of the list itself are read and dropped."""
        pairs: dict[str, Value] = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _HAS_ATTRIBUTES:
                self.read()
            tag = self.read() if flags & _HAS_TAG else None
            pairs[tag if isinstance(tag, str) else str(len(pairs))] = self.read()
            flags = self._int()
        return pairs

    def read(self) -> Value:
        """The next object; a list with names becomes a dictionary."""
        flags = self._int()
        kind = flags & 0xFF
        if kind in (_NIL, _GLOBAL, _BASE, _EMPTY):
            return None
        if kind == _PAIRLIST:
            return dict(self._pairs(flags))
        if kind == _SYMBOL:
            self._symbols.append(self.read())
            return self._symbols[-1]
        if kind == _REFERENCE:
            return self._symbols[(flags >> 8 or self._int()) - 1]
        length = self._int()
        if kind == _CHARS:
            return self._chars(length)
        value = self._vector(kind, length)
        names = self._pairs(self._int()).get("names") if flags & _HAS_ATTRIBUTES else None
        return dict(zip(map(str, names), value, strict=True)) if isinstance(names, list) else value

    def _chars(self, length: int) -> str:
        if length < 0:
            return ""
        text = self._data[self._at : self._at + length]
        self._at += length
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            return text.decode("latin-1")

    def _vector(self, kind: int, length: int) -> list[Value]:
        if kind in (_STRINGS, _LIST):
            return [self.read() for _ in range(length)]
        code, width = {_LOGICAL: ("i", 4), _INTEGER: ("i", 4), _REAL: ("d", 8)}.get(kind, ("", 0))
        if not width:
            raise ValueError(f"R object of type {kind}, which this reader does not know")
        numbers = struct.unpack_from(f">{length}{code}", self._data, self._at)
        self._at += width * length
        return [str(int(number)) for number in numbers]


def _expand(stored: bytes) -> bytes:
    """One record of the database: 4 bytes of length, then zlib; or a letter (Z: xz) and the compressed bytes."""
    if stored[4:5] == b"Z":
        return lzma.decompress(stored[5:], format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    return zlib.decompress(stored[4:])


def lazy_strings(database: Path) -> dict[str, list[str]]:
    """Every object of `database` (a .rdb with its .rdx beside it) as a list of strings, by name."""
    index_bytes = database.with_suffix(".rdx").read_bytes()
    index = _Reader(gzip.decompress(index_bytes) if index_bytes[:2] == b"\x1f\x8b" else zlib.decompress(index_bytes))
    table = index.read()
    if not isinstance(table, dict) or not isinstance(table.get("variables"), dict):
        raise ValueError(f"{database}: no table of variables in its index")
    variables = table["variables"]
    stored = database.read_bytes()
    found: dict[str, list[str]] = {}
    for name, place in variables.items():  # type: ignore[union-attr]
        offset, length = (int(number) for number in place)  # type: ignore[union-attr,arg-type]
        value = _Reader(_expand(stored[offset : offset + length])).read()
        values = list(value.values()) if isinstance(value, dict) else value
        found[name] = [str(item) for item in values or []]
    return found
