"""Whether the operands of a stored call fit each other, so that a port may be given them; it knows no port and no law.

A port is not asked to look: a row outside a table, or records that are too short, would be read where nothing is.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from flexref.architecture.spec import ACTIVATIONS
from flexref.backend.protocol import CHUNK_TOKENS
from flexref.check.operands.file import (
    OperandsError,
    StoredCall,
    StoredMatrix,
    StoredOperand,
    StoredRows,
    StoredSegments,
)
from flexref.storage.quant import group_count, packed_width

FLOATS = ("float32", "float16")


class _Misfit(Exception):
    """Says what does not fit."""


def check_fits(call: StoredCall, where: str) -> None:
    """`OperandsError` that begins with `where` unless the operator could be called so."""
    try:
        SHAPES[call.operator](dict(call.arguments))
    except _Misfit as error:
        raise OperandsError(f"{where}: {call.operator}: {error}") from error
    except KeyError as error:
        raise OperandsError(f"{where}: {call.operator} lacks its argument {error}") from error


def _need(fits: object, what: str) -> None:
    if not fits:
        raise _Misfit(what)


def _array(given: Mapping[str, Any], name: str, axes: int, dtypes: tuple[str, ...] = FLOATS) -> Any:
    """The argument `name`, an array of so many axes."""
    found = given[name]
    _need(isinstance(found, StoredOperand), f"{name} must be an array")
    content = found.content
    _need(content.ndim == axes and str(content.dtype) in dtypes, f"{name} is {content.dtype} {content.shape}")
    return content


def _maybe(given: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> None:
    """The argument `name` is not there, None, or an array of this shape."""
    if given.get(name) is not None:
        found = _array(given, name, len(shape)).shape
        _need(found == shape, f"{name} is {found}, needed {shape}")


def _matrix(given: Mapping[str, Any]) -> tuple[int, int]:
    """(O, I) of the weights."""
    w = given["w"]
    if not isinstance(w, StoredMatrix):
        rows, columns = _array(given, "w", 2).shape
        return rows, columns
    rows = len(w.codes)
    groups = (rows, group_count(w.width, w.group_size))
    _need(w.codes.dtype == np.uint8, f"codes are {w.codes.dtype}, needed uint8")
    needed = (rows, packed_width(w.width, w.group_size, w.bits))
    _need(w.codes.shape == needed, f"codes are {w.codes.shape}, needed {needed}")
    for part in (w.scale, w.zero):
        _need(part.shape == groups and str(part.dtype) in FLOATS, f"scales are {part.dtype} {part.shape}")
    return rows, w.width


def _gather(given: dict[str, Any]) -> None:
    table, ids, out = _array(given, "table", 2), _array(given, "ids", 1, ("int32",)), _array(given, "out", 2)
    _need(out.shape == (len(ids), table.shape[1]), f"out is {out.shape} for {len(ids)} rows of {table.shape[1]}")
    _need(type(given["first"]) is int and given["first"] >= 0, "first must be a number of a row")


def _add_rows(given: dict[str, Any]) -> None:
    x, table, ids = _array(given, "x", 2), _array(given, "table", 2), _array(given, "ids", 1, ("int32",))
    _need(x.shape == (len(ids), table.shape[1]), f"x is {x.shape} for {len(ids)} rows of {table.shape[1]}")
    _need(((ids >= 0) & (ids < len(table))).all(), f"an id lies outside a table of {len(table)} rows")


def _linear(given: dict[str, Any]) -> None:
    x, (outputs, inputs) = _array(given, "x", 2), _matrix(given)
    _need(x.shape[1] == inputs, f"x is {x.shape}, the matrix {(outputs, inputs)}")
    _maybe(given, "b", (outputs,))
    _maybe(given, "out", (len(x), outputs))
    _need(given.get("add", False) in (True, False), "add must be true or false")
    _need(not given.get("add") or given.get("out") is not None, "with add there must be out")


def _expand(given: dict[str, Any]) -> None:
    shape = _matrix(given)
    _need(_array(given, "out", 2).shape == shape, f"out must be {shape}")


def _layer_norm(given: dict[str, Any]) -> None:
    x, epsilon = _array(given, "x", 2), given["epsilon"]
    for name in ("w", "b"):
        _maybe(given, name, (x.shape[1],))
    _maybe(given, "out", x.shape)
    _need(isinstance(epsilon, float) and 0 < epsilon < 1, "epsilon must be between 0 and 1")


def _activate(given: dict[str, Any]) -> None:
    _array(given, "x", 2)
    _need(given["activation"] in ACTIVATIONS, f"the activation must be one of {', '.join(ACTIVATIONS)}")


def _cache(given: dict[str, Any], names: tuple[str, ...]) -> None:
    rows, lengths = given["rows"], given["segments"]
    _need(isinstance(rows, StoredRows) and isinstance(lengths, StoredSegments), "rows and segments must be handles")
    count = len(rows.records)
    _need(count == len(lengths.past) == len(lengths.new), f"{count} rows, {len(lengths.past)} lengths")
    size = rows.layout.record_bytes
    for records, prefix, past, new in zip(rows.records, rows.prefixes, lengths.past, lengths.new, strict=True):
        shared = 0
        if prefix is not None:
            content, shared = prefix
            _need(content.dtype == np.uint8 and content.ndim == 1, "a prefix must be bytes")
            _need(shared % CHUNK_TOKENS == 0 and content.size >= shared * size, f"a prefix of {shared} tokens")
        _need(records.dtype == np.uint8 and records.ndim == 1, "records must be bytes")
        own = (past + new - shared) * size
        _need(past >= shared and new > 0, f"{past} tokens before and {new} new ones, {shared} of them in a prefix")
        _need(records.size >= own and records.size % size == 0, f"{records.size} bytes for {own} of records")
    shape = (sum(lengths.new), rows.layout.heads * rows.layout.head_width)
    for name in names:
        _need(_array(given, name, 2).shape == shape, f"{name} must be {shape}")


def _attend(given: dict[str, Any]) -> None:
    _cache(given, ("q", "out"))
    _need(isinstance(given["scale"], float), "the scale must be a number")


def _sample(given: dict[str, Any]) -> None:
    logits, uniforms = _array(given, "logits", 2, ("float32", "float16")), _array(given, "uniforms", 1, ("float64",))
    _need(len(logits) == len(uniforms), f"{len(logits)} rows, {len(uniforms)} uniform numbers")
    _need(((uniforms >= 0) & (uniforms < 1)).all(), "a uniform number lies outside [0, 1)")
    temperature, top_k, top_p = (given[name] for name in ("temperature", "top_k", "top_p"))
    _need(isinstance(temperature, float | int) and temperature >= 0, "the temperature must be at least 0")
    _need(type(top_k) is int and top_k >= 0, "top_k must be at least 0")
    _need(isinstance(top_p, float | int) and 0 < top_p <= 1, "top_p must be in (0, 1]")


SHAPES: Mapping[str, Callable[[dict[str, Any]], None]] = MappingProxyType(
    {
        "gather": _gather,
        "add_rows": _add_rows,
        "linear": _linear,
        "expand": _expand,
        "layer_norm": _layer_norm,
        "activate": _activate,
        "append": lambda given: _cache(given, ("k", "v")),
        "attend": _attend,
        "sample": _sample,
    }
)
"""What must fit, by operator: those that have a law."""
