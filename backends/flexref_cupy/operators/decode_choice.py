"""Which blocks take decode attention: by the number of items, and how evenly rows are long. It starts nothing.

No bit depends on it. The numbers are what was fastest on one H200 with 32 heads of 128 (README, Attention).
"""

import math

from flexref.backend.records import RecordLayout
from flexref_cupy.device import COUNTERS_BYTES
from flexref_cupy.driver.variants import DecodeBlock, decode_blocks, decode_operator
from flexref_cupy.operators.segments import MOST_SPLITS, SEGMENT_KEYS, STEP_KEYS, Segments

HEADS_PER_BLOCK = 4
"""Heads that one block of decode takes where there are many items, a warp each."""

LIMITS = {
    False: ((0.25, "few"), (0.6, "several"), (8.0, "some")),
    True: ((0.25, "few"), (3.0, "some")),
}
"""Of halves and of codes: up to so many blocks of four heads a multiprocessor items have the blocks of this role."""

SHORT_KEYS = 64
"""Rows of halves of up to so many keys have blocks of less shared memory, of which more fit a multiprocessor."""

WHOLE_BUSY = {False: 0.9, True: 0.7}
"""Decode of halves and of codes takes whole rows where their work is spread over multiprocessors as evenly as this."""

WHOLE_BLOCKS = 1.5, 8.0
"""Of halves: with fewer blocks for rows a multiprocessor than this, or more, items are as fast."""


def decode_macros(layout: RecordLayout) -> dict[str, object]:
    """The macros of kernels of decode made for exactly this layout, whether there are such or not."""
    group = {"GROUP": min(layout.group_size, layout.head_width)} if layout.quantized else {}
    return {"WIDTH": layout.head_width, **group}


class DecodeChoice:
    """The blocks of one layout on one device."""

    def __init__(self, layout: RecordLayout, capability: tuple[int, int], multiprocessors: int) -> None:
        self._layout, self._multiprocessors = layout, multiprocessors
        self.macros = decode_macros(layout)
        self.blocks = decode_blocks(self.macros, capability)
        self.head_blocks = -(-layout.heads // HEADS_PER_BLOCK)

    def operator(self, block: DecodeBlock) -> str:
        """The operator, and its kernel, that has this block."""
        return decode_operator(self.macros, block)

    def shared_bytes(self, block: DecodeBlock) -> int:
        """What a block keeps of records in shared memory: see `pitch_of` in attend_decode.cuh."""
        layout = self._layout
        head_bytes = layout.packed_width + 4 * layout.groups if layout.quantized else 2 * layout.head_width
        return block.stages * block.chunk_steps * STEP_KEYS * ((block.heads * head_bytes + 31) // 64 * 64 + 32)

    def of_items(self, items: int, most_keys: int) -> DecodeBlock:
        """The block for so many items, of rows of at most `most_keys` keys."""
        blocks, halves = self.blocks, not self._layout.quantized
        each = items * self.head_blocks / self._multiprocessors
        role = next((role for limit, role in LIMITS[not halves] if each <= limit), "many")
        if role == "many" or items * self._layout.heads * 4 > COUNTERS_BYTES:
            return blocks.many
        found: DecodeBlock = getattr(blocks, role)
        return blocks.short if halves and role == "some" and most_keys <= SHORT_KEYS else found

    def of_rows(self, segments: Segments) -> DecodeBlock | None:
        """The block that takes whole rows; None where it is better to cut them into items.

        Rows so long that items are more than a segment stay cut: they have other bits.
        """
        block, quantized, most_keys = self.blocks.rows, self._layout.quantized, segments.most_single_keys
        if block is None or not segments.single_keys:
            return None
        if not segments.apart and most_keys > MOST_SPLITS * SEGMENT_KEYS:
            return None
        each = segments.row_count * -(-self._layout.heads // block.heads) / self._multiprocessors
        least, most = WHOLE_BLOCKS
        if not quantized and (most_keys <= SEGMENT_KEYS or not least <= each <= most):
            return None
        even = segments.single_keys / (most_keys * segments.row_count)
        if even * each / math.ceil(each) < WHOLE_BUSY[quantized]:
            return None
        return self.blocks.many if quantized and each > 1 else block
