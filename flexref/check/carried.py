"""Checks that operators read what was stored: weights, hidden states and cache records; it knows no lane.

A copy that comes too late, or from the wrong place, gives an operator wrong operands, and on these the operator may
still be right. So what an operator reads is compared with the weight file, or with what the operator before it wrote.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.architecture.program import Role, TensorKind
from flexref.architecture.stages import tensor_name
from flexref.backend.records import RecordLayout
from flexref.check.findings import MOVED, Call, CheckedVisit, Findings
from flexref.check.tolerances import Values
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile, read_tensor

Rows = slice | npt.NDArray[np.integer]
"""Some rows of a tensor: a slice, or the indices (T,) of the rows."""


class Carried:
    """Compares what operators read with what must be there. Differences go to `findings`.

    Without a `file` nothing is compared.
    """

    def __init__(self, findings: Findings, file: WeightFile | None = None) -> None:
        self._findings, self._file = findings, file
        self._loaded: tuple[str, Values | Quantized] | None = None
        self._left: dict[int, tuple[CheckedVisit, Values]] = {}
        self._records: dict[tuple[str, int], Counter[int]] = {}

    def weights(self, name: str | None, rows: Rows, found: Values | Quantized) -> None:
        """Compare `found`, some rows of the tensor `name` as an operator reads them, with the same rows of the file.

        Nothing is compared where `name` is None, or where the port holds the tensor in another form than the file:
        expanded from groups, or in another type.
        """
        stored = None if name is None else self._stored(name)
        if isinstance(stored, Quantized) and isinstance(found, Quantized):
            parts = {"codes": (found.codes, stored.codes), "scale": (found.scale, stored.scale)}
            parts["zero"] = found.zero, stored.zero
        elif isinstance(stored, np.ndarray) and isinstance(found, np.ndarray) and stored.dtype == found.dtype:
            parts = {"": (found, stored)}
        else:
            return
        call = self._findings.begin(MOVED, "weights", rows=found.shape)
        if call is not None:
            for which, (actual, needed) in parts.items():
                self._equal(call, actual, needed[rows], f"{name} {which}".strip(), rows)

    def vector(self, role: Role | None, kind: TensorKind, found: Values | None) -> None:
        """Compare a bias, a gain or a shift (W,) of the stage that computes with the file; None is not compared."""
        if role is not None and found is not None:
            self.weights(tensor_name(role, kind, self._findings.visit.layer or 0), slice(None), found)

    def hidden_read(self, x: Values, rows: Rows = slice(None)) -> None:
        """Compare hidden states x (T, E), as the first operator of a visit reads them, with what the last stage wrote.

        `rows`: which rows of the hidden states these are. Later calls of one visit do nothing.
        """
        visit = self._findings.visit
        if visit.entered or self._file is None:
            return
        visit.entered = True
        left = self._left.get(visit.group)
        if left is None or left[0].turn != visit.turn or left[0].follower(self._file.spec.layers) != visit.name:
            return
        call = self._findings.begin(MOVED, "activations", x=x.shape)
        if call is not None:
            self._equal(call, x, left[1][rows], "x", rows)

    def hidden_written(self, x: Values) -> None:
        """Remember x (T, E), an operator's result: the last one of a visit is what the next stage reads."""
        if self._file is not None:
            visit = self._findings.visit
            self._left[visit.group] = visit, x

    def records_read(self, contents: Sequence[Values], past: Sequence[int], layout: RecordLayout) -> None:
        """Look for the cache of some rows, before new records are appended, among those that passes before left.

        `contents`: the bytes of every row; `past`: how many tokens' records each holds. The rows of one visit may come
        in several calls. Which row is which is not known here: others come and go between passes.
        """
        if self._file is None or not any(past):
            return
        visit = self._findings.visit
        known = self._records.setdefault((visit.name, visit.group), Counter())
        call = self._findings.begin(MOVED, "cache", rows=(len(contents),))
        if call is not None:
            for row, (tokens, digest) in enumerate(zip(past, _digests(contents, past, layout), strict=True)):
                if not tokens:
                    continue
                if not known[digest]:
                    call.fault(f"brought records of row {visit.rows + row} that are not those that were written")
                known -= Counter((digest,))

    def records_written(self, contents: Sequence[Values], tokens: Sequence[int], layout: RecordLayout) -> None:
        """Remember a digest of every row's first `tokens` records, the new ones included."""
        if self._file is not None:
            visit = self._findings.visit
            self._records.setdefault((visit.name, visit.group), Counter()).update(_digests(contents, tokens, layout))
            visit.rows += len(contents)

    def _stored(self, name: str) -> Values | Quantized | None:
        """A tensor of the file; the last one is kept. None where the file has no such tensor."""
        if self._file is None or name not in self._file.tensors:
            return None
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, read_tensor(self._file.tensors[name])
        return self._loaded[1]

    @staticmethod
    def _equal(call: Call, found: Values, needed: Values, part: str, rows: Rows) -> None:
        """Note the element that differs most; nothing but equality is permitted."""
        if np.array_equal(found, needed):
            call.entry.elements += found.size
            return
        first = (rows.start or 0) if isinstance(rows, slice) else 0
        law = needed.astype(np.float64), np.zeros(needed.shape)
        call.compare(found, law, part, (first, *(0,) * (found.ndim - 1)))


def _digests(contents: Sequence[Values], tokens: Sequence[int], layout: RecordLayout) -> list[int]:
    """A digest of the first `tokens` records of every row."""
    sizes = [count * layout.record_bytes for count in tokens]
    return [xxhash.xxh3_64_intdigest(part[:size].tobytes()) for part, size in zip(contents, sizes, strict=True)]
