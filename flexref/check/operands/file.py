"""Calls of operators with their operands in an .npz file: written by a recorder, and believed nothing when read again.

`operand_N` are the arrays; `calls` says in JSON which operator took which of them, by its arguments' names.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flexref.backend.records import RecordLayout
from flexref.check.logits_file import ArraysFile, ArraysWriter
from flexref.check.tolerances import Values
from flexref.errors import FlexrefError
from flexref.json_types.parsing import as_json
from flexref.json_types.values import shown
from flexref.units import is_integer

FORMAT = "flexref-operands 1"

DTYPES = ("float64", "float32", "float16", "int32", "uint8")

LARGEST_CALL_BYTES = 1 << 28
"""Bounds the operands of one call that is read."""

LARGEST_TEXT_BYTES, MOST_CALLS, MOST_ROWS = 1 << 24, 1 << 16, 1 << 12
"""Bound the text of a file, its calls, and the rows of one call."""

LARGEST_SIZE = 1 << 24
"""Bounds widths, groups, tokens and token ids of a call: more than any model of the family has."""


class OperandsError(FlexrefError):
    """A file of operands that is damaged or foreign, or that a port cannot be given."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A quantized matrix: arrays as of `backend.protocol.QuantizedMatrix`."""

    codes: Values
    scale: Values
    zero: Values
    width: int
    group_size: int
    bits: int


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Caches of rows, as `Backend.cache_rows` is given them; of each prefix its array and its tokens."""

    records: Sequence[Values]
    layout: RecordLayout
    prefixes: Sequence[tuple[Values, int] | None]
    tier: str = "device"


@dataclass(frozen=True, slots=True)
class StoredSegments:
    """Lengths of rows, as `Backend.segments` is given them."""

    past: Sequence[int]
    new: Sequence[int]


@dataclass(frozen=True, slots=True)
class StoredOperand:
    """An array of a tier; of `values` on the host, which are given as they are."""

    content: Values
    tier: str


@dataclass(frozen=True, slots=True)
class StoredCall:
    """One call: its number in the file, the operator, and its arguments by name."""

    number: int
    operator: str
    arguments: Mapping[str, Any]


class OperandsWriter:
    """The file `path` in the making; it has its name when `with` ends without an error."""

    def __init__(self, path: str, about: Mapping[str, Any]) -> None:
        self._about, self._writer = about, ArraysWriter(path)
        self._calls: list[dict[str, Any]] = []
        self._arrays = 0

    def __enter__(self) -> "OperandsWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            text = json.dumps({"format": FORMAT, **self._about, "calls": self._calls})
            self._writer.text("calls", text)
        self._writer.__exit__(kind, error, trace)

    @property
    def calls(self) -> int:
        """Calls written so far."""
        return len(self._calls)

    def add(self, operator: str, arguments: Mapping[str, Any]) -> None:
        """Write one more call; arguments are those of `StoredCall`."""
        encoded = {name: self._encoded(value) for name, value in arguments.items()}
        self._calls.append({"operator": operator, "arguments": encoded})

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, StoredOperand):
            return {"array": self._array(value.content), "tier": value.tier}
        if isinstance(value, StoredMatrix):
            parts = {name: self._array(getattr(value, name)) for name in ("codes", "scale", "zero")}
            return {"matrix": {**parts, "width": value.width, "group_size": value.group_size, "bits": value.bits}}
        if isinstance(value, StoredRows):
            prefixes = [part and [self._array(part[0]), part[1]] for part in value.prefixes]
            records = [self._array(part) for part in value.records]
            about = {"records": records, "prefixes": prefixes, "tier": value.tier}
            return {"rows": {**about, "layout": asdict(value.layout)}}
        if isinstance(value, StoredSegments):
            return {"segments": {"past": list(value.past), "new": list(value.new)}}
        return {"value": value}

    def _array(self, values: Values) -> int:
        self._writer.whole(f"operand_{self._arrays}", np.atleast_1d(values))
        self._arrays += 1
        return self._arrays - 1


class OperandsFile:
    """A file of calls from anywhere; every complaint is an `OperandsError` in one line."""

    def __init__(self, path: str) -> None:
        self.path, self._file = path, ArraysFile(path, OperandsError)
        try:
            about = as_json(self._file.text("calls", LARGEST_TEXT_BYTES), path, OperandsError)
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise OperandsError(f"{path} holds no operands: its format is {shown(about)}, needed {FORMAT!r}")
            calls = about.get("calls")
            if not isinstance(calls, list) or len(calls) > MOST_CALLS:
                raise OperandsError(f"{path}: needed a list of at most {MOST_CALLS} calls")
            self._calls: list[Any] = calls
            self.compute_dtype = str(about.get("compute_dtype"))[:20]
        except BaseException:
            self._file.__exit__()
            raise

    def __enter__(self) -> "OperandsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    def __len__(self) -> int:
        return len(self._calls)

    def calls(self, operators: Sequence[str], first: int = 0) -> Iterator[StoredCall]:
        """The calls from number `first` on, of operators that have these names."""
        for number in range(first, len(self._calls)):
            call, where = self._calls[number], f"{self.path}, call {number}"
            if not isinstance(call, dict) or call.get("operator") not in operators:
                raise OperandsError(f"{where}: needed one of {', '.join(operators)}, found {shown(call)}")
            arguments = call.get("arguments")
            if not isinstance(arguments, dict) or not all(name.isidentifier() for name in arguments):
                raise OperandsError(f"{where}: needed arguments by name, found {shown(arguments)}")
            reader = _Reader(self._file, where)
            yield StoredCall(number, call["operator"], {name: reader.value(part) for name, part in arguments.items()})


class _Reader:
    """Reads the arguments of one call, `LARGEST_CALL_BYTES` of arrays at most."""

    def __init__(self, file: ArraysFile, where: str) -> None:
        self._file, self._where, self._left = file, where, LARGEST_CALL_BYTES

    def value(self, part: Any) -> Any:
        """One argument."""
        if not isinstance(part, dict):
            raise self._wrong(part)
        if part.keys() == {"array", "tier"} and part["tier"] in ("device", "host", "values"):
            return StoredOperand(self._array(part["array"]), part["tier"])
        if len(part) != 1:
            raise self._wrong(part)
        ((kind, content),) = part.items()
        if kind == "value" and (content is None or isinstance(content, bool | int | float | str)):
            return self._plain(content)
        if not isinstance(content, dict):
            raise self._wrong(part)
        if kind == "matrix" and content.keys() == {"codes", "scale", "zero", "width", "group_size", "bits"}:
            return self._matrix(content)
        if kind == "rows" and content.keys() == {"records", "prefixes", "tier", "layout"}:
            return self._rows(content)
        if kind == "segments" and content.keys() == {"past", "new"}:
            return StoredSegments(*(self._sizes(content[name], 0) for name in ("past", "new")))
        raise self._wrong(part)

    def _plain(self, value: Any) -> Any:
        bounded = not isinstance(value, int) or abs(value) <= LARGEST_SIZE
        if not bounded or (isinstance(value, float) and not math.isfinite(value)):
            raise self._wrong(value)
        return value[:100] if isinstance(value, str) else value

    def _matrix(self, content: Mapping[str, Any]) -> StoredMatrix:
        width, group_size = (self._size(content[name], 1) for name in ("width", "group_size"))
        if content["bits"] not in (4, 8):
            raise self._wrong(content["bits"])
        codes, scale, zero = (self._array(content[name]) for name in ("codes", "scale", "zero"))
        return StoredMatrix(codes, scale, zero, width, group_size, content["bits"])

    def _rows(self, content: Mapping[str, Any]) -> StoredRows:
        records, prefixes, layout = content["records"], content["prefixes"], content["layout"]
        lists = isinstance(records, list) and isinstance(prefixes, list)
        if not lists or not 0 < len(records) == len(prefixes) <= MOST_ROWS or content["tier"] not in ("device", "host"):
            raise self._wrong(content)
        names = {"heads", "head_width", "dtype", "scheme", "group_size"}
        if not isinstance(layout, dict) or layout.keys() != names:
            raise self._wrong(layout)
        sizes = {name: self._size(layout[name], 1) for name in ("heads", "head_width", "group_size")}
        if layout["dtype"] not in ("float32", "float16") or layout["scheme"] not in ("none", "int4"):
            raise self._wrong(layout)
        stored = RecordLayout(**{**layout, **sizes})
        named = [None if part is None else self._prefix(part) for part in prefixes]
        return StoredRows([self._array(part) for part in records], stored, named, content["tier"])

    def _prefix(self, part: Any) -> tuple[Values, int]:
        if not isinstance(part, list) or len(part) != 2:
            raise self._wrong(part)
        return self._array(part[0]), self._size(part[1], 1)

    def _sizes(self, values: Any, least: int) -> list[int]:
        if not isinstance(values, list) or not 0 < len(values) <= MOST_ROWS:
            raise self._wrong(values)
        return [self._size(value, least) for value in values]

    def _size(self, value: Any, least: int) -> int:
        if not is_integer(value) or not least <= value <= LARGEST_SIZE:
            raise self._wrong(value)
        return int(value)

    def _array(self, number: Any) -> Values:
        if not is_integer(number):
            raise self._wrong(number)
        stored = self._file.array(f"operand_{number}")
        if not stored.fits(DTYPES, self._left):
            raise OperandsError(
                f"{self._where}: operand {number} is {stored.dtype} {stored.shape}, needed one of {', '.join(DTYPES)} "
                f"with an axis, all of a call in at most {LARGEST_CALL_BYTES} bytes"
            )
        self._left -= stored.nbytes
        return stored.whole()

    def _wrong(self, found: Any) -> OperandsError:
        return OperandsError(f"{self._where}: needed an argument of an operator, found {shown(found)}")
