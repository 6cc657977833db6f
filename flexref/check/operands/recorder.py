"""Stands between an engine and a port and keeps the operands of its operators in a file; it judges nothing."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from inspect import Signature, signature
from typing import Any

import numpy as np

from flexref.backend.protocol import Backend, QuantizedMatrix
from flexref.check.operands.file import (
    LARGEST_CALL_BYTES,
    MOST_CALLS,
    OperandsWriter,
    StoredMatrix,
    StoredOperand,
    StoredRows,
    StoredSegments,
)
from flexref.check.operands.shapes import SHAPES
from flexref.check.placed import Placed, PlacedBackend, PlacedRows, PlacedSegments, bare, read_placed

LARGEST_FILE_BYTES = 1 << 30
"""What is kept in all; calls after that are left out."""


class OperandRecorder(PlacedBackend):
    """A port of which every call of an operator is kept that is not like one before: the same shapes, types, settings.

    `left_out` counts calls that were not like any before, but too large.
    """

    def __init__(self, port: Backend, writer: OperandsWriter) -> None:
        super().__init__(port)
        self._writer, self._seen, self._left_bytes = writer, set[Any](), LARGEST_FILE_BYTES
        self.left_out = 0

    def __getattr__(self, name: str) -> Any:
        """An operator of the port; memory and lanes are those of `PlacedBackend`."""
        if name not in SHAPES:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return partial(self._call, name, getattr(self._port, name))

    def _call(self, operator: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        operands = given_operands(operator, arguments, named)
        key = operator, tuple(_kind(value) for value in operands.values())
        if key not in self._seen:
            self._seen.add(key)
            self._keep(operator, operands)
        result = call(*map(_bare, arguments), **{name: _bare(value) for name, value in named.items()})
        if operator in ("append", "sample"):
            return result
        for place in (operands.get("out"), operands.get("x")):
            if isinstance(place, Placed) and place.array is result:
                return place
        return operands["out"] if isinstance(operands.get("out"), Placed) else Placed(result)

    def _keep(self, operator: str, operands: dict[str, Any]) -> None:
        lengths = operands.get("segments")
        nbytes = sum(_nbytes(value, lengths) for value in operands.values())
        if nbytes > min(LARGEST_CALL_BYTES, self._left_bytes) or self._writer.calls >= MOST_CALLS:
            self.left_out += 1
            return
        self._left_bytes -= nbytes
        self._writer.add(operator, stored_operands(self, operands))


def stored_operands(backend: PlacedBackend, operands: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of a call's operands, by its arguments' names, as they are now on `backend`."""
    lengths = operands.get("segments")
    return {name: _stored(backend, value, lengths) for name, value in operands.items()}


def given_operands(operator: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """What an operator is called with, by its arguments' names."""
    given = _signature(operator).bind(None, *arguments, **named).arguments
    return {name: value for name, value in given.items() if name != "self"}


@cache
def _signature(operator: str) -> Signature:
    """Read once: it is asked for at every call of a run."""
    return signature(getattr(Backend, operator))


def _stored(backend: PlacedBackend, value: Any, lengths: PlacedSegments | None) -> Any:
    """A copy of one operand."""
    if isinstance(value, QuantizedMatrix):
        codes, scale, zero = (read_placed(backend, part) for part in (value.codes, value.scale, value.zero))  # type: ignore[arg-type]
        return StoredMatrix(codes, scale, zero, value.width, value.group_size, value.bits)
    if isinstance(value, Placed):
        return StoredOperand(read_placed(backend, value), "device" if value.host is None else "host")
    if isinstance(value, np.ndarray):
        return StoredOperand(value.copy(), "values")
    if isinstance(value, PlacedSegments):
        return StoredSegments(value.past, value.new)
    if not isinstance(value, PlacedRows):
        return value
    assert lengths is not None
    size, used = value.layout.record_bytes, _used_bytes(value, lengths)
    records = [read_placed(backend, part[:count]) for part, count in zip(value.records, used, strict=True)]
    prefixes = [part and (read_placed(backend, part[0][: part[1] * size]), part[1]) for part in value.prefixes]
    return StoredRows(records, value.layout, prefixes, "device" if value.records[0].host is None else "host")


def _used_bytes(rows: PlacedRows, lengths: PlacedSegments) -> list[int]:
    """Bytes of every row's own array that hold tokens, past or new."""
    pairs = zip(lengths.total, rows.shared, strict=True)
    return [(total - shared) * rows.layout.record_bytes for total, shared in pairs]


def _bare(value: Any) -> Any:
    return value.handle if isinstance(value, PlacedRows | PlacedSegments) else bare(value)


def _kind(value: Any) -> Any:
    """What makes two operands alike: everything but their numbers."""
    if isinstance(value, Placed):
        return value.shape, str(getattr(value.array, "dtype", "")), value.host is None
    if isinstance(value, QuantizedMatrix):
        return value.shape, value.bits, value.group_size
    if isinstance(value, PlacedRows):
        return len(value.records), value.layout, value.shared
    if isinstance(value, PlacedSegments):
        return value.past, value.new
    return value.shape if isinstance(value, np.ndarray) else value


def _nbytes(value: Any, lengths: PlacedSegments | None = None) -> int:
    """At most so many bytes of operands: of an array whose type is not known, those of the widest."""
    if isinstance(value, QuantizedMatrix):
        return sum(_nbytes(part) for part in (value.codes, value.scale, value.zero))
    if isinstance(value, PlacedRows) and lengths is not None:
        return sum(_used_bytes(value, lengths)) + sum(part[1] for part in value.prefixes if part) * (
            value.layout.record_bytes
        )
    if isinstance(value, Placed):
        dtype = getattr(value.array, "dtype", None)
        itemsize = getattr(dtype, "itemsize", np.dtype(np.float32).itemsize)
        return int(np.prod(value.shape, dtype=np.int64)) * int(itemsize)
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0
