"""The KV cache of the reference port: appends records, and says which rows and queries attend to them together."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flexref.backend.records import RecordLayout
from flexref.storage.quant import quantize
from flexref_numpy.attend_rows import RowCaches, attend_rows, chunks_of, queries_at_once
from flexref_numpy.scratch import TILE_ROWS, Numbers, Scratch, tiles
from flexref_numpy.sections import RowRecords, Sections


@dataclass(frozen=True, slots=True)
class CacheRows:
    """The caches of B rows, each uint8 (capacity * record_bytes,), and what each begins with elsewhere."""

    records: tuple[Numbers, ...]
    layout: RecordLayout
    prefixes: tuple[tuple[Numbers, int] | None, ...]

    def __iter__(self) -> Iterator[RowRecords]:
        """Where the records of every row lie."""
        for own, prefix in zip(self.records, self.prefixes, strict=True):
            yield RowRecords(own, own, 0) if prefix is None else RowRecords(own, *prefix)


@dataclass(frozen=True, slots=True)
class Segments:
    """Per row: tokens already in its cache, and new tokens among the T of this pass."""

    past: tuple[int, ...]
    new: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(first token among the T, past, new) of every row."""
        first = 0
        for past, new in zip(self.past, self.new, strict=True):
            yield first, past, new
            first += new


def append(rows: CacheRows, segments: Segments, k: Numbers, v: Numbers) -> None:
    """See `Backend.append`."""
    layout, sections = rows.layout, Sections(rows.layout)
    for row, (first, past, new) in zip(rows, segments, strict=True):
        record = past - row.shared
        for which, values in ((0, k), (1, v)):
            codes, pairs = sections.of(row.own, which, record, record + new)
            fresh = values[first : first + new].reshape(new, layout.heads, layout.head_width)
            if pairs is None:
                codes[...] = fresh
                continue
            for start, end in tiles(new, TILE_ROWS):  # what quantization holds meanwhile stays small
                packed = quantize(fresh[start:end], layout.group_size, np.float16, "a cache record")
                codes[start:end] = packed.codes
                # Which zero is a group's least of 0 and -0 depends on how many tokens are looked through at once.
                pairs[start:end, ..., 0], pairs[start:end, ..., 1] = packed.scale, packed.zero + np.float16(0)


def attend(scratch: Scratch, rows: CacheRows, segments: Segments, q: Numbers, scale: float, out: Numbers) -> Numbers:
    """See `Backend.attend`: rows of a single query many at once, others by themselves, some queries at a time."""
    layout, sections, factor = rows.layout, Sections(rows.layout), np.float32(scale)
    heads = layout.heads, layout.head_width
    singles: defaultdict[int, list[tuple[RowRecords, int, int]]] = defaultdict(list)
    for row, (first, past, new) in zip(rows, segments, strict=True):
        if new == 1:
            singles[chunks_of(past + 1)].append((row, past, first))
            continue
        step = queries_at_once(scratch, layout, past + new)
        for start in range(0, new, step):
            which = slice(first + start, first + min(new, start + step))
            queries, result = q[which].reshape(1, -1, *heads), out[which].reshape(1, -1, *heads)
            attend_rows(scratch, RowCaches(sections, [row], [past + start]), queries, factor, result)
    for members in singles.values():
        records_of, past_of, tokens = (list(column) for column in zip(*members, strict=True))
        queries = q[tokens].reshape(len(tokens), 1, *heads)
        result = np.empty(queries.shape, out.dtype)
        attend_rows(scratch, RowCaches(sections, records_of, past_of), queries, factor, result)
        out[tokens] = result.reshape(len(tokens), -1)
    return out
