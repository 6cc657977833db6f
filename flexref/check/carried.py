"""What an operator must find where something was moved: weights, hidden states, cache records; it knows no lane.

An operator that is right on its own operands proves nothing of a copy that came too late or from elsewhere. So what it
reads is held against what the weight file holds, and against what was written there last.
"""

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
"""Which rows of a tensor."""


class Carried:
    """Compares what operators read with what they must find; without a `file` nothing is compared."""

    def __init__(self, findings: Findings, file: WeightFile | None = None) -> None:
        self._findings, self._file = findings, file
        self._loaded: tuple[str, Values | Quantized] | None = None
        self._left: dict[int, tuple[CheckedVisit, Values]] = {}
        self._records: dict[tuple[str, int], list[int]] = {}

    def weights(self, name: str | None, rows: Rows, found: Values | Quantized) -> None:
        """Some rows of a tensor of the file, as an operator reads them; in another form they were expanded before."""
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
        """The bias of a projection, or the gain or shift of a norm, of the stage that computes."""
        if role is not None and found is not None:
            self.weights(tensor_name(role, kind, self._findings.visit.layer or 0), slice(None), found)

    def hidden_read(self, x: Values, rows: Rows = slice(None)) -> None:
        """Rows of the hidden states, as a visit's first operator reads them."""
        visit = self._findings.visit
        if visit.entered or self._file is None:
            return
        visit.entered, visit.tokens = True, len(x)
        left = self._left.get(visit.group)
        if left is None or left[0].turn != visit.turn or left[0].follower(self._file.spec.layers) != visit.name:
            return
        call = self._findings.begin(MOVED, "activations", x=x.shape)
        if call is not None:
            self._equal(call, x, left[1][rows], "x", rows)

    def hidden_written(self, x: Values) -> None:
        """What an operator gave: the last one of a visit gives the hidden states that the next stage reads."""
        if self._file is not None:
            visit = self._findings.visit
            self._left[visit.group] = visit, x

    def records_read(self, contents: Sequence[Values], past: Sequence[int], layout: RecordLayout) -> None:
        """The rows of a cache before new records come; the rows of a visit may come in several calls."""
        visit = self._findings.visit
        if not visit.known:
            visit.known = self._records.pop((visit.name, visit.group), [])
        if visit.turn == 0 or len(visit.known) != visit.tokens:  # a row that has retired moves all after it
            return
        call = self._findings.begin(MOVED, "cache", rows=(len(contents),))
        if call is not None:
            for row, digest in enumerate(_digests(contents, past, layout), start=visit.rows):
                if digest != visit.known[row]:
                    call.fault(f"brought records of row {row} that are not those that were written")

    def records_written(self, contents: Sequence[Values], tokens: Sequence[int], layout: RecordLayout) -> None:
        """The rows of a cache with their new records."""
        if self._file is not None:
            visit = self._findings.visit
            self._records.setdefault((visit.name, visit.group), []).extend(_digests(contents, tokens, layout))
            visit.rows += len(contents)

    def _stored(self, name: str) -> Values | Quantized | None:
        if self._file is None or name not in self._file.tensors:
            return None
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, read_tensor(self._file.tensors[name])
        return self._loaded[1]

    @staticmethod
    def _equal(call: Call, found: Values, needed: Values, part: str, rows: Rows) -> None:
        if np.array_equal(found, needed):
            call.entry.elements += found.size
            return
        first = (rows.start or 0) if isinstance(rows, slice) else 0
        law = needed.astype(np.float64), np.zeros(needed.shape)
        call.compare(found, law, part, (first, *(0,) * (found.ndim - 1)))


def _digests(contents: Sequence[Values], tokens: Sequence[int], layout: RecordLayout) -> list[int]:
    sizes = [count * layout.record_bytes for count in tokens]
    return [xxhash.xxh3_64_intdigest(part[:size].tobytes()) for part, size in zip(contents, sizes, strict=True)]
