"""Makes the calls of one port on another one too, with the very same operands; it judges nothing.

The first port's activations are at most as wide as the second's, so that every operand is the same number on both.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flexref.backend.protocol import Buffer, QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.check.checked import CheckedBackend
from flexref.check.laws import section
from flexref.check.operands.file import StoredMatrix, StoredOperand, StoredRows, StoredSegments
from flexref.check.placed import Placed
from flexref.check.tolerances import Values
from flexref.units import ALIGNMENT_BYTES, aligned

ACTIVATIONS = frozenset({"x", "out", "q", "k", "v"})
"""Arguments that have the type of activations where they have no other."""


class Twin:
    """A checked port that is given the operands of another, whose activations are of `dtype`."""

    def __init__(self, port: CheckedBackend, dtype: str) -> None:
        self._port, self._dtype = port, dtype
        self._buffers: list[Buffer] = []

    def call(self, operator: str, operands: Mapping[str, Any]) -> None:
        """Call an operator on copies of its operands; what it gives is judged by the port's findings."""
        try:
            given = {name: self._placed(name, value) for name, value in operands.items()}
            with self._port.frame():
                getattr(self._port, operator)(**given)
        finally:
            self._port.mark().wait()
            for buffer in self._buffers:
                self._port.release(buffer)
            self._buffers.clear()

    def _placed(self, name: str, value: Any) -> Any:
        if isinstance(value, StoredOperand):
            if value.tier == "values":
                return value.content
            own = name in ACTIVATIONS and str(value.content.dtype) == self._dtype
            return self._array(value.content.astype(self._port.caps.compute_dtype) if own else value.content)
        if isinstance(value, StoredMatrix):
            codes, scale, zero = (self._array(part) for part in (value.codes, value.scale, value.zero))
            return QuantizedMatrix(codes, scale, zero, value.width, value.group_size, value.bits)
        if isinstance(value, StoredRows):
            return self._rows(value)
        if isinstance(value, StoredSegments):
            return self._port.segments(value.past, value.new)
        return value

    def _rows(self, value: StoredRows) -> Any:
        """Caches on the device, wherever they lay; plain records in the port's own type."""
        layout = value.layout
        if not layout.quantized and layout.dtype == self._dtype:
            layout = replace(layout, dtype=self._port.caps.compute_dtype)
        records = [self._array(_records(part, value.layout, layout)) for part in value.records]
        prefixes = [part and (self._array(_records(part[0], value.layout, layout)), part[1]) for part in value.prefixes]
        return self._port.cache_rows(records, layout, prefixes if any(value.prefixes) else None)

    def _array(self, values: Values) -> Placed:
        buffer = self._port.allocate("device", aligned(max(1, values.nbytes), ALIGNMENT_BYTES))
        self._buffers.append(buffer)
        return self._port.upload(values, out=self._port.view(buffer, 0, values.shape, str(values.dtype)))


def _records(content: Values, layout: RecordLayout, wanted: RecordLayout) -> Values:
    """The same tokens in records of another type."""
    if layout == wanted:
        return content
    tokens = content.size // layout.record_bytes
    made = np.zeros((tokens, wanted.record_bytes), np.uint8)
    for which in (0, 1):
        values, _ = section(content, layout, which, 0, tokens)
        parts = np.ascontiguousarray(values.astype(wanted.dtype)).reshape(tokens, -1).view(np.uint8)
        first = which * wanted.value_offset
        made[:, first : first + parts.shape[1]] = parts
    return made.reshape(-1)
