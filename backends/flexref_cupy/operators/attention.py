"""The KV cache of the port: appends records and attends to them; it knows no tiers, and kernels do the arithmetic.

Every row goes its own way, whatever other rows are in the call: one new token to a kernel of decode, several to
`attend_prefill`, and its keys are split as its own number of keys says.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any

from flexref.backend.records import RecordLayout
from flexref.errors import PolicyError
from flexref_cupy.device import COUNTERS_BYTES, PARTIALS_BYTES, Device, SmallArray
from flexref_cupy.driver.launching import Kernel
from flexref_cupy.driver.variants import VARIANTS, DecodeBlock
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.decode_choice import DecodeChoice
from flexref_cupy.operators.segments import MOST_SPLITS, SEGMENT_KEYS, TILE_TOKENS, Segments
from flexref_cupy.operators.starts import Starts, StartTables, distances_of

WIDEST_HEAD = 256
"""What a block's registers hold of a head's numbers."""

LOOSE_WIDTHS = (16, 64, 128, WIDEST_HEAD)
"""Heads of other widths than those of the exact variants are computed as the next wider of these, with zeros."""

THREADS = 128
"""A block of attention."""

APPEND_THREADS, APPEND_TEAM, APPEND_DEPTH = 256, 8, 8
"""A block of `append`, its threads that quantize one group, and the blocks that share a tile's tokens."""

LOG2_E = math.log2(math.e)
"""Exponentials are powers of two: scores are scaled by it."""

_FLOAT, _INTEGER = Struct("=f"), Struct("=i")


def exact_macros(layout: RecordLayout) -> dict[str, object]:
    """The macros of kernels made for exactly this layout, whether there are such or not."""
    if layout.quantized:
        return {"FORM": "CODES", "WIDTH": layout.head_width, "GROUP": min(layout.group_size, layout.head_width)}
    return {"FORM": "VALUES", "WIDTH": layout.head_width, "GROUP": 0}


class LayoutKernels:
    """The kernels that serve one record layout, and the numbers that they are told of it."""

    def __init__(self, device: Device, layout: RecordLayout) -> None:
        """`PolicyError` if no kernel can: heads too wide or too many, or values that are not float16."""
        if layout.head_width > WIDEST_HEAD:
            raise PolicyError(f"the port's attention takes heads of width {WIDEST_HEAD} at most: {layout.head_width}")
        if not layout.quantized and layout.dtype != "float16":
            raise PolicyError(f"the port's cache holds float16 or 4-bit groups, found {layout.dtype}")
        self._device, self.layout = device, layout
        self._decodes: dict[DecodeBlock, Kernel] = {}
        self._prefills: dict[bool, Kernel] = {}
        self.choice = DecodeChoice(layout, device.cuda.capability, device.cuda.multiprocessors)
        many = self.choice.blocks.many
        self.exact = {**self.choice.macros, **many.macros} in VARIANTS[self.choice.operator(many)]
        """Whether kernels know the layout as a constant; the others go number by number."""
        self.group_size = min(layout.group_size, layout.head_width)
        self.head_bytes = layout.packed_width if layout.quantized else 2 * layout.head_width
        self.wide_codes = not (layout.head_width % 8 or self.group_size % 8)
        self.kept_bytes = TILE_TOKENS * layout.head_width * 4
        """What a tile keeps of earlier segments, in shared memory, where rows have bits of their own."""
        self.wide_values = not layout.heads * layout.head_width % 8
        partial_bytes = layout.heads * (-(-layout.head_width // 64) * 64 + 2) * 4
        self.items_at_once = min(PARTIALS_BYTES // partial_bytes, COUNTERS_BYTES // 4 // self.choice.head_blocks)
        """Items of decode whose partial sums and counters fit the scratch."""
        if self.items_at_once < MOST_SPLITS:
            raise PolicyError(f"the port's attention cannot take {layout.heads} heads of width {layout.head_width}")

    def decode(self, block: DecodeBlock) -> Kernel:
        """The kernel of decode for an exact layout."""
        kernel = self._decodes.get(block)
        if kernel is None:
            name, macros = self.choice.operator(block), {**self.choice.macros, **block.macros}
            kernel = self._device.kernels.get(name, name, self.choice.shared_bytes(block), **macros)
            self._decodes[block] = kernel
        return kernel

    def prefill(self, apart: bool) -> Kernel:
        """`attend_prefill` of any layout; of loose ones it is the same, since no other kernel serves them."""
        apart = apart and self.exact
        kernel = self._prefills.get(apart)
        if kernel is None:
            macros, kept_bytes = exact_macros(self.layout), self.kept_bytes if apart else 0
            if not self.exact:
                width = next(width for width in LOOSE_WIDTHS if width >= self.layout.head_width)
                macros = {"FORM": f"LOOSE_{macros['FORM']}", "WIDTH": width, "GROUP": 0}
            kernel = self._device.kernels.get(
                "attend_prefill", "attend_prefill", kept_bytes, **macros, APART=int(apart)
            )
            self._prefills[apart] = kernel
        return kernel

    def append(self, wide: bool) -> Kernel:
        """`append` to this layout, several numbers at a time or one."""
        name = "append_codes" if self.layout.quantized else "append_values"
        return self._device.kernels.get("append", name, WIDE=int(wide))


class CacheRows:
    """The caches of B rows of one layout: how far from the place `records` each one's are.

    That place is where the first row's records were when the handle was made; nothing is read there.
    """

    __slots__ = ("__weakref__", "count", "kernels", "recordings", "records", "table")

    def __init__(self, records: int, count: int, table: Starts, kernels: LayoutKernels) -> None:
        self.records, self.count, self.table, self.kernels = records, count, table, kernels
        self.recordings = 0
        """How many recordings read its table where it is."""
        table.handles.add(self)

    def move(self, table: Starts) -> None:
        """Have another table, which says the same."""
        self.table.handles.discard(self)
        self.table = table
        table.handles.add(self)

    @property
    def starts(self) -> int:
        """Where the distances are on the device now."""
        return self.table.small.address

    @property
    def small(self) -> SmallArray:
        """The distances on the device."""
        return self.table.small


def float_bits(number: float) -> int:
    """The bits of a float32: kernels take them as an integer, since small devices convert doubles slowly."""
    (bits,) = _INTEGER.unpack(_FLOAT.pack(number))
    return int(bits)


class Attention:
    """The port's operators on a KV cache."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.rows_apart = True
        """Whether a token's result has the same bits decoded alone and read in a prompt, in any pieces of it."""
        self._layouts: dict[RecordLayout, LayoutKernels] = {}
        self._tables = StartTables(device)

    def cache_rows(
        self, records: Sequence[Tensor], layout: RecordLayout, prefixes: Sequence[tuple[Any, int] | None] | None
    ) -> CacheRows:
        """See `Backend.cache_rows`; `PolicyError` for a layout that no kernel serves."""
        kernels = self._layouts.get(layout)
        if kernels is None:
            kernels = self._layouts[layout] = LayoutKernels(self._device, layout)
        first = records[0].address
        table = self._tables.table(distances_of(first, records, prefixes, layout.record_bytes))
        return CacheRows(first, len(records), table, kernels)

    def renew_rows(
        self, rows: Sequence[CacheRows], records: Sequence[Tensor], prefixes: Sequence[tuple[Any, int] | None] | None
    ) -> bool:
        """See `RecordingBackend.renew_rows`: one table of distances is written anew, and so the handles must share it.

        Their own places stay what they are: distances may be negative then.
        """
        first = rows[0]
        if len(records) != first.count:
            return False
        record_bytes = first.kernels.layout.record_bytes
        return self._tables.renew(rows, distances_of(first.records, records, prefixes, record_bytes))

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Segments:
        """See `Backend.segments`."""
        return Segments(self._device, past, new, self.rows_apart)

    def renew_segments(self, segments: Segments, past: Sequence[int], new: Sequence[int]) -> bool:
        """See `RecordingBackend.renew_segments`."""
        return segments.apart == self.rows_apart and segments.renew(past, new)

    def append(self, rows: CacheRows, segments: Segments, k: Tensor, v: Tensor) -> None:
        """See `Backend.append`: one launch for all rows, K and V."""
        self._device.recorded(rows, segments)
        kernels, layout = rows.kernels, rows.kernels.layout
        places = k.address | k.pitch_bytes | v.address | v.pitch_bytes
        common = (rows.records, rows.starts, segments.rows, segments.tiles, k.address, k.pitch, v.address, v.pitch)
        numbers: tuple[int, ...]
        if layout.quantized:
            wide = kernels.wide_codes and not places % 8
            threads = 2 * layout.heads * layout.groups * APPEND_TEAM
            numbers = (layout.heads, layout.head_width, kernels.group_size, kernels.head_bytes, layout.pairs_offset)
        else:
            wide = kernels.wide_values and not places % 16
            pieces = layout.heads * layout.head_width // (8 if wide else 1)
            threads, numbers = 2 * pieces, (pieces,)
        depth = APPEND_DEPTH if segments.prefill_count else 1
        grid = (segments.tile_count, -(-threads // APPEND_THREADS), depth)
        kernels.append(wide)(grid, APPEND_THREADS, *common, *numbers, layout.record_bytes)

    def attend(self, rows: CacheRows, segments: Segments, q: Tensor, scale: float, out: Tensor) -> None:
        """See `Backend.attend`."""
        kernels, layout, factor = rows.kernels, rows.kernels.layout, float_bits(scale * LOG2_E)
        tiles, count = segments.tiles, segments.tile_count
        self._device.recorded(rows, segments)
        if kernels.exact and segments.most_splits <= kernels.items_at_once:
            tiles, count = segments.prefill_tiles, segments.prefill_count
            self._decode(rows, segments, q, factor, out)
        elif kernels.exact:
            segments.fixed = True
        if not count:
            return
        kernel = kernels.prefill(segments.apart)
        kept_bytes = kernels.kept_bytes if segments.apart and kernels.exact and segments.most_keys > SEGMENT_KEYS else 0
        q_aligned = not (q.address | q.pitch_bytes) % 16
        out_aligned = not ((out.address | out.pitch_bytes) % 4 or layout.head_width % 2)
        kernel(
            (count * layout.heads, 1, 1),
            THREADS,
            *(rows.records, rows.starts, segments.rows, tiles),
            *(q.address, q.pitch, q_aligned, out.address, out.pitch, out_aligned),
            *(layout.heads, layout.head_width, kernels.group_size, kernels.head_bytes, layout.groups),
            *(layout.pairs_offset, layout.record_bytes, factor),
            shared_bytes=kept_bytes,
        )

    def _decode(self, rows: CacheRows, segments: Segments, q: Tensor, factor: int, out: Tensor) -> None:
        kernels, layout, scratch = rows.kernels, rows.kernels.layout, self._device.scratch
        of_codes = (kernels.head_bytes, layout.pairs_offset) if layout.quantized else ()
        whole = kernels.choice.of_rows(segments)
        for first, count in [(0, segments.row_count)] if whole else segments.launches(kernels.items_at_once):
            block = whole or kernels.choice.of_items(count, segments.most_single_keys)
            kernels.decode(block)(
                (count * -(-layout.heads // block.heads), 1, 1),
                block.threads,
                *(rows.records, rows.starts, segments.rows, 0 if whole else segments.items + 8 * first),
                *(q.address, q.pitch, out.address, out.pitch, scratch.partials, scratch.counters),
                *(layout.heads, *of_codes, layout.record_bytes, factor),
                shared_bytes=kernels.choice.shared_bytes(block),
            )
