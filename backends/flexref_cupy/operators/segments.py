"""How the rows of one pass are cut into what blocks of attention take; it knows no records and no kernel."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flexref_cupy.device import Device
from flexref_cupy.operators.on_host import HostLengths

Numbers = npt.NDArray[np.int64]

STEP_KEYS, SPLIT_STEPS, MOST_SPLITS = 16, 16, 64
"""Decode takes so many keys at a time, so many times per block, in so many blocks at most; then blocks take twice as
many, or three times.

Of rows that have bits of their own a block takes as many steps always, however many blocks that makes: a prompt's
tokens add up the same segments.
"""

SEGMENT_KEYS = STEP_KEYS * SPLIT_STEPS
"""Keys of a segment, as `attend_prefill.cu` has it."""

TILE_TOKENS = 64
"""New tokens that one block takes."""

PADDING_STEPS = 8
"""Places for items are an eighth more than there are at most: see `padded_count`."""


def numbered(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For `counts` of things of every owner: whose each thing is, and its number among its owner's."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)


def padded_count(items: int) -> int:
    """So many places are kept for `items` items of decode: up to an eighth more, so that rows may grow in them."""
    step = max(1, (1 << max(0, items.bit_length() - 1)) // PADDING_STEPS)
    return -(-items // step) * step


class Segments:
    """One pass over B rows, on the device: rows, items of decode (row, split), tiles (row, first new token).

    Tiles of rows with one new token come first; of the others those with the most keys, so that the longest work starts
    first. Where every row has one new token, there are some more places for items: those of row -1 are padding.
    """

    __slots__ = (
        "_device",
        "_item_ends",
        "_launches",
        "_rows",
        "_single",
        "_table",
        "apart",
        "fixed",
        "item_count",
        "items",
        "most_keys",
        "most_single_keys",
        "most_splits",
        "on_host",
        "padded_count",
        "prefill_count",
        "prefill_tiles",
        "recordings",
        "row_count",
        "rows",
        "single_keys",
        "small",
        "tile_count",
        "tiles",
    )

    def __init__(self, device: Device, past: Sequence[int], new: Sequence[int], apart: bool) -> None:
        """`apart`: every row has bits of its own, the same in whatever pieces its tokens come."""
        self.apart, self._device = apart, device
        self.on_host = HostLengths(past, new)
        """The same, for caches that lie on the host."""
        self.fixed = False
        """Whether launches depended on more of it than its counts: then other lengths need another handle."""
        self.recordings = 0
        """How many recordings read it where it is."""
        cut = _Cut(past, new, apart)
        self._rows, self._single, self.row_count = len(past), cut.single, len(past)
        self.padded_count, self.prefill_count = cut.padded_count, len(cut.tiles)
        self.tile_count = cut.single_count + len(cut.tiles)
        self._take(cut)
        self.small = device.small(self._table)
        self.rows = self.small.address
        self.items = self.rows + 16 * len(past)
        self.tiles = self.items + 8 * cut.padded_count
        self.prefill_tiles = self.tiles + 8 * cut.single_count

    def _take(self, cut: "_Cut") -> None:
        self._table = cut.table()
        self.single_keys, self.most_single_keys = cut.single_keys, cut.most_single_keys
        self.most_keys, self.most_splits = cut.most_keys, int(cut.splits.max(initial=0))
        self.item_count, self._item_ends = len(cut.items), np.cumsum(cut.splits)
        self._launches: dict[int, list[tuple[int, int]]] = {}

    def renew(self, past: Sequence[int], new: Sequence[int]) -> bool:
        """Hold other lengths from now on, at the same place and for the same launches; False if that cannot be."""
        if self.fixed or not self._single or len(past) != self._rows or new.count(1) != len(new):
            return False
        self.on_host = HostLengths(past, new)
        before, held = np.array(past, np.int64), self._table[1 : 4 * self._rows : 4]
        if self.apart and np.array_equal(before // SEGMENT_KEYS, held // SEGMENT_KEYS):
            held[:] = before  # as a rule no row comes to another segment
            self.most_keys = self.most_single_keys = int(before.max()) + 1
            self.single_keys = int(before.sum()) + len(past)
        else:
            cut = _Cut(past, new, self.apart)
            # A launch that takes rows whole has other bits where items are more than a segment.
            edges = (SEGMENT_KEYS,) if self.apart else (SEGMENT_KEYS, MOST_SPLITS * SEGMENT_KEYS)
            crossed = any((self.most_keys > edge) != (cut.most_keys > edge) for edge in edges)
            if cut.padded_count != self.padded_count or crossed:
                return False
            self._take(cut)
        self._device.renew_small(self.small, self._table)
        return True

    def launches(self, most: int) -> list[tuple[int, int]]:
        """(first, count) of the items in pieces of `most` at most, none of which cuts a row; padding is among them."""
        if self.padded_count <= most:
            return [(0, self.padded_count)] if self.item_count else []
        self.fixed = True
        found = self._launches.get(most)
        if found is None:
            found, first = [], 0
            while first < self.item_count:
                row = int(np.searchsorted(self._item_ends, first + most, "right"))
                last = int(self._item_ends[row - 1])
                found.append((first, last - first))
                first = last
            self._launches[most] = found
        return found


class _Cut:
    """How rows are cut, in numbers: rows (B, 4), items (N, 2), tiles of the rows with several new tokens (M, 2)."""

    def __init__(self, past: Sequence[int], new: Sequence[int], apart: bool) -> None:
        before, fresh = np.array(past, np.int64), np.array(new, np.int64)
        steps = np.maximum(1, -(-(before + fresh) // STEP_KEYS))
        split_steps = np.full_like(steps, SPLIT_STEPS)
        if not apart:
            split_steps *= -(-steps // (SPLIT_STEPS * MOST_SPLITS))
        self.rows = np.stack((np.cumsum(fresh) - fresh, before, fresh, split_steps), 1)
        single, several = np.flatnonzero(fresh == 1), np.flatnonzero(fresh > 1)
        self.splits = -(-steps[single] // split_steps[single])
        owners, splits_of = numbered(self.splits)
        self.items = np.stack((single[owners], splits_of), 1)
        self.tiles: Numbers = np.empty((0, 2), np.int64)
        if several.size:
            owners, tiles_of = numbered(-(-fresh[several] // TILE_TOKENS))
            tiles = np.stack((several[owners], tiles_of * TILE_TOKENS), 1)
            self.tiles = tiles[np.argsort(-(before[tiles[:, 0]] + tiles[:, 1]), kind="stable")]
        self.single_count, self.single = len(single), len(single) == len(fresh)
        self.padded_count = padded_count(len(self.items)) if self.single else len(self.items)
        self.most_keys = int((before + fresh).max(initial=0))
        self._single_rows = single
        keys = (before + fresh)[single]
        self.single_keys, self.most_single_keys = int(keys.sum()), int(keys.max(initial=0))

    def table(self) -> npt.NDArray[np.int32]:
        """All of it one after the other, as it lies on the device."""
        padding = np.full((self.padded_count - len(self.items), 2), -1)
        tiles = np.stack((self._single_rows, np.zeros_like(self._single_rows)), 1)
        parts = (self.rows, self.items, padding, tiles, self.tiles)
        return np.concatenate([part.ravel() for part in parts]).astype(np.int32)
