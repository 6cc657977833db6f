"""Wraps any port so that every operator call is checked against float64; it knows neither model nor schedule.

Each call is computed again in float64 from the operands that the port was given:

findings = Findings()
port = CheckedBackend(MyBackend(), findings, Carried(findings, file))
with load(file, backend=port) as engine:
    engine.generate(prompts, on_visit=findings.on_visit)
print(findings.worst)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.check import laws
from flexref.check.checked_rows import BLOCK_ELEMENTS, CheckedRows, blocks, quietly
from flexref.check.findings import Call, PortFailure
from flexref.check.placed import Placed, PlacedRows, PlacedSegments, bare
from flexref.check.tolerances import Operand, Values
from flexref.errors import FlexrefError, QuantizationError

TOKENS_NAMED = 4
"""A fault names at most this many of the tokens that would have been right."""


class CheckedBackend(CheckedRows):
    """A `Backend` that passes every call on to `port` and checks the result.

    What is wrong is noted in `findings`, and the run goes on with the port's own result. A call that raises, or whose
    result has a shape that nothing can be done with, raises `PortFailure`.
    """

    def append(self, rows: PlacedRows, segments: PlacedSegments, k: Any, v: Any) -> None:
        """See `Backend.append`. New records must be those of `storage.quant`; no other byte may change."""
        call = self._findings.begin("append", "", k=k.shape)
        if call is None:
            return self._port.append(rows.handle, segments.handle, bare(k), bare(v))
        layout, before = rows.layout, [self._read(records) for records in rows.records]
        own = [past - shared for past, shared in zip(segments.past, rows.shared, strict=True)]
        self._carried.records_read(before, own, layout)
        fresh = self._read(k), self._read(v)
        with call.running():
            self._port.append(rows.handle, segments.handle, bare(k), bare(v))
        contents = [self._read(records) for records in rows.records]
        self._carried.records_written(contents, [a + b for a, b in zip(own, segments.new, strict=True)], layout)
        for row, (first, _, new) in enumerate(segments):
            for which, values in enumerate(fresh):
                self._check_records(call, rows, (row, which, own[row]), contents[row], values[first : first + new])
            written = slice(own[row] * layout.record_bytes, (own[row] + new) * layout.record_bytes)
            contents[row][written] = before[row][written] = 0
            call.same(contents[row], before[row], f"changed bytes outside the new records of row {row}")
        return None

    def attend(self, rows: PlacedRows, segments: PlacedSegments, q: Any, scale: float, out: Any) -> Placed:
        """See `Backend.attend`."""
        call = self._findings.begin("attend", "", q=q.shape, keys=(max(segments.total),))
        if call is None:
            return self._given(self._port.attend(rows.handle, segments.handle, bare(q), scale, bare(out)), out)
        held = self._read(q)
        with call.running():
            result = self._port.attend(rows.handle, segments.handle, bare(q), scale, bare(out))
        found = self._found(call, result, out, q.shape)
        for row, (first, past, new) in enumerate(segments):
            content = np.concatenate([self._read(part) for part in rows.arrays(row, past + new)])
            some = slice(first, first + new)
            keys, values = (quietly(laws.held, content, rows.layout, which, past + new, self._how) for which in (0, 1))
            self._check_attention(call, (keys, values), held[some], scale, (found[some], first))
        call.same(self._read(q), held, "changed its q")
        return self._given(result, out)

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """See `Backend.sample`."""

        def run() -> npt.NDArray[np.int64]:
            return self._port.sample(bare(logits), temperature, top_k, top_p, uniforms)

        call = self._findings.begin("sample", "", logits=logits.shape)
        if call is None:
            return run()
        held = self._read(logits)
        chosen = _sampled(call, held, run)
        call.entry.elements += len(chosen)
        for row in range(len(chosen) if np.isfinite(held).all() else 0):
            possible = quietly(
                laws.possible_tokens, held[row].astype(np.float64), temperature, top_k, top_p, float(uniforms[row])
            )
            if int(chosen[row]) not in possible:
                needed = sorted(possible)[:TOKENS_NAMED]
                call.fault(f"gives token {chosen[row]} for row {row}, needed {' or '.join(map(str, needed))}")
        call.same(self._read(logits), held, "changed the logits")
        return chosen

    def _check_records(
        self, call: Call, rows: PlacedRows, which: tuple[int, int, int], content: Values, values: Values
    ) -> None:
        """Check the new records of one row: `content` (bytes,) must hold `values` (S, E).

        `which`: the row, 0 for K or 1 for V, and how many records its own array had before.
        """
        row, part, past = which
        for some in blocks(*values.shape):
            try:
                judged = quietly(laws.recorded, content, rows.layout, part, past + some.start, values[some])
            except QuantizationError:  # values that no scale can say
                call.skip(values[some].size)
                continue
            for numbers in judged:
                first = (some.start, *(0,) * (numbers.value.ndim - 1))
                call.compare(numbers.found, (numbers.value, numbers.bound), f"{numbers.what} of row {row}", first)

    def _check_attention(
        self, call: Call, cache: tuple[Operand, Operand], q: Values, scale: float, found: tuple[Values, int]
    ) -> None:
        """Check one row's attention, some queries and some heads at a time.

        `cache`: K and V (T, H, D); `q` (S, E); `found`: the result (S, E), and the number of its first token among
        those of all rows.
        """
        tokens, heads, width = cache[0].values.shape
        result, first = found
        result, q = result.reshape(-1, heads, width), q.reshape(-1, heads, width)
        for some in blocks(len(q), tokens):
            seen = tokens - len(q) + some.stop
            step = max(1, BLOCK_ELEMENTS // (seen * (some.stop - some.start)))
            for head in range(0, heads, step):
                here = slice(head, min(heads, head + step))
                keys, values = (
                    Operand(*(of[:seen, here] for of in (part.values, part.magnitude, part.error))) for part in cache
                )
                law = quietly(laws.attend, q[some, here], keys, values, scale, self._how)
                call.compare(result[some, here], law, first=(first + some.start, head, 0))


def _sampled(call: Call, logits: Values, run: Callable[[], Any]) -> npt.NDArray[np.int64]:
    """Run `Backend.sample` on logits (B, V) -> the tokens (B,) that the port chose.

    Notes a fault where logits that are not finite are accepted or the type is wrong. Raises `PortFailure` where finite
    logits are refused or the shape is wrong.
    """
    finite = bool(np.isfinite(logits).all())
    try:
        with call.running():
            chosen = run()
    except PortFailure:
        raise
    except FlexrefError as error:
        if finite:
            raise call.stop(f"refuses finite logits: {error}") from error
        raise
    if not finite:
        call.fault("takes logits that are not finite")
    if not isinstance(chosen, np.ndarray) or chosen.shape != logits.shape[:1]:
        raise call.stop(f"gives {getattr(chosen, 'shape', type(chosen).__name__)}, needed {logits.shape[:1]}")
    if chosen.dtype != np.int64:
        call.fault(f"gives {chosen.dtype}, needed int64")
    return chosen
