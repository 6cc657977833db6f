"""The KV cache of the reference port: appends records, and attends to them batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from flexref.backend.records import RecordLayout
from flexref.storage.quant import quantize
from flexref_numpy.attend_rows import Heads
from flexref_numpy.batches import Batch, Room, batches
from flexref_numpy.scratch import TILE_ROWS, Numbers, Scratch, tiles
from flexref_numpy.sections import RowRecords, Sections


@dataclass(frozen=True)
class CacheRows:
    """The caches of B rows, each uint8 (capacity * record_bytes,), and what each begins with elsewhere."""

    records: tuple[Numbers, ...]
    layout: RecordLayout
    prefixes: tuple[tuple[Numbers, int] | None, ...]

    @cached_property
    def rows(self) -> tuple[RowRecords, ...]:
        """Where the records of every row lie; found when they are first needed, and once for every layer."""
        sections, found = Sections(self.layout), list[RowRecords]()
        named = {id(prefix[0]): sections.whole(prefix[0]) for prefix in self.prefixes if prefix is not None}
        for own, prefix in zip(self.records, self.prefixes, strict=True):
            views = sections.whole(own)
            begun, shared = (views, 0) if prefix is None else (named[id(prefix[0])], prefix[1])
            found.append(RowRecords(self.layout, views, begun, shared))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Segments:
    """Per row: tokens already in its cache, and new tokens among the T of this pass."""

    past: tuple[int, ...]
    new: tuple[int, ...]
    _batches: dict[tuple[int, int, int], list[tuple[Batch, list[Heads]]]] = field(default_factory=dict, compare=False)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(first token among the T, past, new) of every row."""
        first = 0
        for past, new in zip(self.past, self.new, strict=True):
            yield first, past, new
            first += new

    def batches(self, scratch: Scratch, heads: int, width: int) -> list[tuple[Batch, list[Heads]]]:
        """What is attended to together, and where in the scratch: the same for every layer of a pass."""
        key = id(scratch), heads, width
        found = self._batches.get(key)
        if found is None:
            found = self._batches[key] = [
                (batch, [Heads(scratch, batch, some, width) for some in batch.some])
                for batch in batches(self, Room(scratch.half, heads, width))
            ]
        return found


def append(rows: CacheRows, segments: Segments, k: Numbers, v: Numbers) -> None:
    """See `Backend.append`."""
    layout = rows.layout
    values = [part.reshape(len(part), layout.heads, layout.head_width) for part in (k, v)]
    step = tiles(len(k), TILE_ROWS) if layout.quantized else ((0, len(k)),)
    for start, end in step:  # what quantization holds meanwhile stays small
        if layout.quantized:
            packed = [quantize(part[start:end], layout.group_size, np.float16, "a cache record") for part in values]
        for row, (first, past, new) in zip(rows.rows, segments, strict=True):
            begin, stop = max(first, start), min(first + new, end)
            if begin >= stop:
                continue
            record = past - row.shared + begin - first
            span, fresh = slice(record, record + stop - begin), slice(begin - start, stop - start)
            if span.stop > row.own.tokens:
                raise IndexError(f"{span.stop} records in a cache of {row.own.tokens}")
            for which, (codes, pairs) in enumerate(row.own.parts):
                if pairs is None:
                    codes[span] = values[which][fresh]
                    continue
                found = packed[which]
                codes[span] = found.codes[fresh]
                # Which of 0 and -0 is the least or the greatest depends on how many tokens are looked through at once.
                none = np.float16(0)
                pairs[span, ..., 0], pairs[span, ..., 1] = found.scale[fresh] + none, found.zero[fresh] + none


def attend(scratch: Scratch, rows: CacheRows, segments: Segments, q: Numbers, scale: float, out: Numbers) -> Numbers:
    """See `Backend.attend`."""
    factor, records, shape = np.float32(scale), rows.rows, (rows.layout.heads, rows.layout.head_width)
    queries, results = q.reshape(len(q), *shape), out.reshape(len(out), *shape)
    for batch, parts in segments.batches(scratch, *shape):
        some, of_batch = [records[row] for row in batch.rows], (*batch.shape, *shape)
        together = isinstance(batch.tokens, slice)
        asked = queries[batch.tokens].reshape(of_batch)
        result = results[batch.tokens].reshape(of_batch) if together else np.empty(of_batch, out.dtype)
        for heads in parts:
            heads.attend(some, asked, factor, result)
        if not together:
            results[batch.tokens] = result.reshape(-1, *shape)
    return out
