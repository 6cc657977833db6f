"""Checks every call of the operators on rows (all but cache, attention, sampling) against float64; it knows no cache.

Operands are downloaded before a call and its result after it, so operators run one after another. Every call is checked
on the operands that it really had, so an error of one operator is never counted as one of the next. The reference works
on the host, in blocks of bounded size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flexref.architecture.program import Role, TensorKind
from flexref.architecture.stages import StageKind, tensor_name
from flexref.backend.protocol import Backend, Matrix, QuantizedMatrix
from flexref.check import laws
from flexref.check.carried import Carried
from flexref.check.findings import Call, Findings, role_of
from flexref.check.placed import Placed, PlacedBackend, bare
from flexref.check.tolerances import Values, arithmetic
from flexref.storage.quant import Quantized

BLOCK_ELEMENTS = 1 << 17
"""The reference works on so many numbers at a time: 1 MiB of float64, which fits a core's cache. Besides an operator's
operands, a check holds about ten times as much."""

FEW_ROWS = 16
"""Where a table has more than 16 times as many rows as are needed, only these are downloaded."""


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers: each holds at most `BLOCK_ELEMENTS` numbers, or one row."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    for first in range(0, count, step):
        yield slice(first, min(count, first + step))


def quietly(law: Callable[..., Any], *arguments: Any) -> Any:
    """Call `law` without numpy's warnings: operands may be infinite or NaN, and then the result is."""
    with np.errstate(all="ignore"):
        return law(*arguments)


class CheckedRows(PlacedBackend):
    """The operators on rows of `port`, checked. `carried` compares what they read with what was stored."""

    def __init__(self, port: Backend, findings: Findings, carried: Carried | None = None) -> None:
        super().__init__(port)
        self._findings = findings
        self._carried = Carried(findings) if carried is None else carried
        self._how = arithmetic(port.caps.compute_dtype)

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Placed:
        """See `Backend.gather`. Values are exact; rows of `out` whose id is not in this table must not change."""
        call = self._findings.begin("gather", "", table=table.shape, ids=ids.shape)
        if call is None:
            return self._given(self._port.gather(bare(table), bare(ids), first, bare(out)), out)
        before, places = self._read(out), self._read(ids).astype(np.int64) - first
        here = (places >= 0) & (places < table.shape[0])
        rows = self._table_rows(table, places[here])
        if self._findings.visit.kind == StageKind.HEAD:  # the rows' last tokens
            self._carried.hidden_read(rows, places[here])
        with call.running():
            result = self._port.gather(bare(table), bare(ids), first, bare(out))
        found = self._found(call, result, out, out.shape)
        value = quietly(rows.astype, before.dtype).astype(np.float64)
        call.compare(found[here], (value, np.zeros(value.shape)))
        call.same(found[~here], before[~here], "changed rows that are not in the table")
        return self._given(result, out)

    def add_rows(self, x: Any, table: Any, ids: Any) -> Placed:
        """See `Backend.add_rows`."""
        call = self._findings.begin("add_rows", "", x=x.shape, table=table.shape)
        if call is None:
            return self._given(self._port.add_rows(bare(x), bare(table), bare(ids)), x)
        before, places = self._read(x), self._read(ids)
        rows = self._table_rows(table, places)
        self._carried.weights(tensor_name(Role.POSITIONS, TensorKind.TABLE), places, rows)
        with call.running():
            result = self._port.add_rows(bare(x), bare(table), bare(ids))
        found = self._found(call, result, x, x.shape)
        for some in blocks(*x.shape):
            law = quietly(laws.add_rows, before[some], rows[some], self._how)
            call.compare(found[some], law, first=(some.start, 0))
        self._carried.hidden_written(found)
        return self._given(result, x)

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Placed:
        """See `Backend.linear`."""
        matrix = self._findings.visit.matrix("linear", w.shape)
        call = self._findings.begin("linear", role_of(matrix), x=x.shape, w=w.shape)
        if call is None:
            return self._given(self._port.linear(bare(x), bare(w), bare(b), out=bare(out), add=add), out)
        held, bias, base = self._read(x), None if b is None else self._read(b), self._read(out) if add else None
        self._carried.hidden_read(held)
        self._carried.vector(None if matrix is None else matrix.role, TensorKind.BIAS, bias)
        with call.running():
            result = self._port.linear(bare(x), bare(w), bare(b), out=bare(out), add=add)
        found = self._found(call, result, out, (x.shape[0], w.shape[0]))
        for some in blocks(*w.shape):
            weights = self._matrix(w, some)
            self._carried.weights(None if matrix is None else matrix.name, some, weights)
            operand, share = quietly(laws.matrix, weights, self._how), None if bias is None else bias[some]
            for tokens in blocks(x.shape[0], max(x.shape[1], some.stop - some.start)):
                added = None if base is None else base[tokens, some]
                law = quietly(laws.linear, held[tokens], operand, share, added, self._how)
                call.compare(found[tokens, some], law, first=(tokens.start, some.start))
        call.same(self._read(x), held, "changed its x")
        self._carried.hidden_written(found)
        return self._given(result, out)

    def expand(self, w: Matrix, out: Any) -> Placed:
        """See `Backend.expand`."""
        matrix = self._findings.visit.matrix("expand", w.shape)
        call = self._findings.begin("expand", role_of(matrix), w=w.shape)
        if call is None:
            return self._given(self._port.expand(bare(w), bare(out)), out)
        with call.running():
            result = self._port.expand(bare(w), bare(out))
        found = self._found(call, result, out, w.shape)
        for some in blocks(*w.shape):
            weights = self._matrix(w, some)
            in_layer = self._findings.visit.kind == StageKind.LAYER  # elsewhere they may be activations
            if isinstance(weights, Quantized) or in_layer:
                self._carried.weights(None if matrix is None else matrix.name, some, weights)
            operand = quietly(laws.matrix, weights, self._how)
            call.compare(found[some], (operand.values, operand.error), first=(some.start, 0))
        if self._findings.visit.kind == StageKind.EMBED:
            self._carried.hidden_written(found)
        return self._given(result, out)

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Placed:
        """See `Backend.layer_norm`."""
        role = self._findings.visit.norm()
        call = self._findings.begin("layer_norm", "" if role is None else role.value, x=x.shape)
        if call is None:
            return self._given(self._port.layer_norm(bare(x), bare(w), bare(b), epsilon, bare(out)), out)
        held, gain, shift = (None if part is None else self._read(part) for part in (x, w, b))
        assert held is not None
        self._carried.hidden_read(held)
        for kind, vector in ((TensorKind.GAIN, gain), (TensorKind.SHIFT, shift)):
            self._carried.vector(role, kind, vector)
        with call.running():
            result = self._port.layer_norm(bare(x), bare(w), bare(b), epsilon, bare(out))
        found = self._found(call, result, out, x.shape)
        for some in blocks(*x.shape):
            law = quietly(laws.layer_norm, held[some], gain, shift, epsilon, self._how)
            call.compare(found[some], law, first=(some.start, 0))
        if out is not x:
            call.same(self._read(x), held, "changed its x")
        self._carried.hidden_written(found)
        return self._given(result, out)

    def activate(self, x: Any, activation: str) -> Placed:
        """See `Backend.activate`."""
        call = self._findings.begin("activate", activation, x=x.shape)
        if call is None:
            return self._given(self._port.activate(bare(x), activation), x)
        held = self._read(x)
        with call.running():
            result = self._port.activate(bare(x), activation)
        found = self._found(call, result, x, x.shape)
        for some in blocks(*x.shape):
            law = quietly(laws.activate, held[some], activation, self._how)
            call.compare(found[some], law, first=(some.start, 0))
        return self._given(result, x)

    @staticmethod
    def _given(result: Any, place: Placed | None) -> Placed:
        """What the engine is given: the place that it named, else the port's array."""
        return Placed(result) if place is None else place

    def _found(self, call: Call, result: Any, place: Placed | None, shape: tuple[int, ...]) -> Values:
        """The values of a call's result, read from `place` if the caller named one, else from what the port returned.

        Notes a fault where shape or type are wrong, or where the port returned another array than it wrote. Raises
        `PortFailure` where the shape is wrong and there is no place to read.
        """
        given = getattr(result, "shape", None)
        if given is None or tuple(given) != shape:
            complaint = f"gives {type(result).__name__}, needed an array of the shape {shape}"
            if given is not None:
                complaint = f"gives the shape {tuple(given)}, needed {shape}"
            if place is None:
                raise call.stop(complaint)
            call.fault(complaint)
        if place is None:
            found = np.array(self._port.download(result))
            if found.dtype != self.caps.compute_dtype:
                call.fault(f"gives {found.dtype}, needed {self.caps.compute_dtype}")
            return found
        found = self._read(place)
        if result is not place.array and given is not None and tuple(given) == shape and place.host is None:
            call.same(np.array(self._port.download(result)), found, "returns another array than its result")
        return found

    def _matrix(self, w: Matrix, rows: slice) -> Values | Quantized:
        """Some rows of a matrix w (O, I), in the form in which the port holds them."""
        if isinstance(w, QuantizedMatrix):
            codes, scale, zero = (self._read(part[rows]) for part in (w.codes, w.scale, w.zero))
            return Quantized(codes, scale, zero, w.width, w.group_size, w.bits)
        return self._read(w[rows])

    def _table_rows(self, table: Placed, rows: Values) -> Values:
        """The rows with the indices `rows` (T,) of a table (V, W) -> (T, W). A large table is not read as a whole."""
        wanted, places = np.unique(rows, return_inverse=True)
        if len(wanted) * FEW_ROWS >= table.shape[0]:
            return self._read(table)[rows]
        if not len(wanted):
            return self._read(table[:1])[:0]
        return np.concatenate([self._read(table[row : row + 1]) for row in wanted.tolist()])[places]
