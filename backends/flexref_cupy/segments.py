"""How the rows of one pass are cut into what blocks of attention take; it knows no records and no kernel."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flexref_cupy.device import Device

Numbers = npt.NDArray[np.int64]

STEP_KEYS, SPLIT_STEPS, MOST_SPLITS = 16, 16, 64
"""Decode takes so many keys at a time, so many times per block, in so many blocks at most; then blocks take more.

Of rows that have bits of their own a block takes as many steps always, however many blocks that makes: a prompt's
tokens add up the same segments.
"""

SEGMENT_KEYS = STEP_KEYS * SPLIT_STEPS
"""Keys of a segment, as `attend_prefill.cu` has it."""

TILE_TOKENS = 64
"""New tokens that one block takes."""


def numbered(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For `counts` of things of every owner: whose each thing is, and its number among its owner's."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)


class Segments:
    """One pass over B rows, on the device: rows, items of decode (row, split), tiles (row, first new token).

    Tiles of rows with one new token come first; of the others those with the most keys, so that the longest work starts
    first.
    """

    __slots__ = (
        "_array",
        "_item_ends",
        "_launches",
        "apart",
        "item_count",
        "items",
        "most_keys",
        "most_splits",
        "prefill_count",
        "prefill_tiles",
        "rows",
        "tile_count",
        "tiles",
    )

    def __init__(self, device: Device, past: Sequence[int], new: Sequence[int], apart: bool) -> None:
        """`apart`: every row has bits of its own, the same in whatever pieces its tokens come."""
        self.apart = apart
        before, fresh = np.array(past, np.int64), np.array(new, np.int64)
        steps = np.maximum(1, -(-(before + fresh) // STEP_KEYS))
        split_steps = np.full_like(steps, SPLIT_STEPS)
        if not apart:
            split_steps = -(-steps // np.minimum(-(-steps // SPLIT_STEPS), MOST_SPLITS))
        rows = np.stack((np.cumsum(fresh) - fresh, before, fresh, split_steps), 1)
        single, several = np.flatnonzero(fresh == 1), np.flatnonzero(fresh > 1)
        splits = -(-steps[single] // split_steps[single])
        owners, splits_of = numbered(splits)
        items = np.stack((single[owners], splits_of), 1)
        tiles: Numbers = np.empty((0, 2), np.int64)
        if several.size:
            owners, tiles_of = numbered(-(-fresh[several] // TILE_TOKENS))
            tiles = np.stack((several[owners], tiles_of * TILE_TOKENS), 1)
            tiles = tiles[np.argsort(-(before[tiles[:, 0]] + tiles[:, 1]), kind="stable")]
        parts = (rows, items, np.stack((single, np.zeros_like(single)), 1), tiles)
        self._array = device.small(np.concatenate([part.ravel() for part in parts]).astype(np.int32))
        self.most_keys = int((before + fresh).max(initial=0))
        self.item_count, self.prefill_count = len(items), len(tiles)
        self.tile_count = len(single) + len(tiles)
        self.rows = self._array.address
        self.items = self.rows + 16 * len(rows)
        self.tiles = self.items + 8 * len(items)
        self.prefill_tiles = self.tiles + 8 * len(single)
        self.most_splits = int(splits.max(initial=0))
        self._item_ends = np.cumsum(splits)
        self._launches: dict[int, list[tuple[int, int]]] = {}

    def launches(self, most: int) -> list[tuple[int, int]]:
        """(first, count) of the items in pieces of `most` at most, none of which cuts a row."""
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
