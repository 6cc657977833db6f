"""Finds tokens that several rows begin with, in whole chunks of attention, so that they are read and kept once."""

from collections.abc import Iterable, Sequence
from itertools import count
from weakref import WeakSet

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.block.rows import Row, SharedPrefix


class PrefixFinder:
    """Lets rows share prefixes, those that it finds and those that it found before and that rows still have.

    A row has one prefix at most. Of the beginnings that several rows have in common those come first that spare most
    tokens; the last token of a row, and all that it scores from, are always its own.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._known: WeakSet[SharedPrefix] = WeakSet()

    def find(self, rows: Iterable[Row]) -> None:
        """Look at rows that are in no block yet; those that share something already are left as they are."""
        alone = [row for row in rows if row.prefix is None and chunks_of(row)]
        known = {prefix.tokens: prefix for prefix in self._known}
        lengths = sorted({len(tokens) for tokens in known}, reverse=True)
        for row in alone:
            most = chunks_of(row) * CHUNK_TOKENS
            found = (known.get(row.prompt[:length]) for length in lengths if length <= most)
            row.share(next((prefix for prefix in found if prefix is not None), None))
        alone = [row for row in alone if row.prefix is None]
        for chunks, members in _beginnings(alone):
            free = [row for row in members if row.prefix is None]
            if len(free) > 1:
                prefix = SharedPrefix(next(self._numbers), free[0].prompt[: chunks * CHUNK_TOKENS])
                self._known.add(prefix)
                for row in free:
                    row.share(prefix)


def chunks_of(row: Row) -> int:
    """How many whole chunks of its prompt a row may share."""
    return (len(row.prompt) - max(1, row.scored)) // CHUNK_TOKENS


def _beginnings(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """(chunks, rows that begin with the same so many chunks), what spares most first."""
    found: list[tuple[int, list[Row]]] = []
    alike = [list(rows)]
    chunks = 0
    while alike:
        chunks += 1
        parts: dict[tuple[int, tuple[int, ...]], list[Row]] = {}
        for number, some in enumerate(alike):
            for row in some:
                if chunks_of(row) >= chunks:
                    chunk = row.prompt[(chunks - 1) * CHUNK_TOKENS : chunks * CHUNK_TOKENS]
                    parts.setdefault((number, chunk), []).append(row)
        alike = [some for some in parts.values() if len(some) > 1]
        found += [(chunks, some) for some in alike]
    return sorted(found, key=lambda each: -each[0] * (len(each[1]) - 1))
