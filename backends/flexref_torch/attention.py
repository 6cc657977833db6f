"""Records of a KV cache, written and attended to by PyTorch's functions; it knows no device and no workspace."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flexref.backend.pieces import EvenRun, HostSegments, Place, Segments, even_runs, pieces
from flexref.backend.process_settings import WhileInside
from flexref.backend.protocol import Prefix
from flexref.backend.records import SECTION_BYTES, RecordLayout
from flexref.storage.quant import LEVELS, group_bytes, group_runs
from flexref_torch.operators import Array, RowOperators, exact_products, unpack

FUSED, FUSED_WIDTH = SDPBackend.EFFICIENT_ATTENTION, 8
"""The one kernel of PyTorch's for float16 whose sums, in float32, are the same whatever other rows there are; it takes
heads that are a multiple of so many values wide."""

fused_kernel = WhileInside.of(lambda: sdpa_kernel(FUSED))
"""Attention is computed by `FUSED`, whatever kernels the process is set to; then as before."""


def load_fused() -> None:
    """Load what calls of `FUSED` need: with it comes PyTorch's compiler, which takes seconds and nothing else needs."""
    import_module("torch.nn.attention.bias")


def section(records: Array, layout: RecordLayout, which: int) -> tuple[Array, Array | None]:
    """K (`which` 0) or V (1): values (T, H, D) and None, or codes (T, H, packed) and pairs (T, H, G, 2)."""
    codes, pairs = (records[:, place] for place in layout.places(which))
    if not layout.quantized:
        return codes.view(getattr(torch, layout.dtype)).unflatten(-1, (layout.heads, layout.head_width)), None
    pairs = pairs.view(torch.float16).unflatten(-1, (layout.heads, -1, 2))
    return codes.unflatten(-1, (layout.heads, layout.packed_width)), pairs


def quantize(values: Array, codes: Array, pairs: Array, group_size: int) -> None:
    """values (T, H, D) in float32 -> codes (T, H, packed) and pairs (T, H, G, 2), by the law of `storage.quant`."""
    for first, groups, size in group_runs(values.shape[-1], group_size):
        part = values[..., first * group_size :][..., : groups * size].unflatten(-1, (groups, size))
        low, high = part.aminmax(dim=-1)
        zero = low.half()
        scale = ((high - zero.float()).clamp(min=0) / LEVELS).half()
        pairs[..., first : first + groups, 0], pairs[..., first : first + groups, 1] = scale, zero
        step = scale.float().masked_fill(scale == 0, torch.inf)
        found = ((part - zero.float()[..., None]) / step[..., None]).round_().clamp_(0, LEVELS).to(torch.uint8)
        start, each = first * group_bytes(group_size, 4), group_bytes(size, 4)
        found[..., : size - each] |= found[..., each:] << 4
        codes[..., start : start + groups * each] = found[..., :each].flatten(-2)


@dataclass(frozen=True, slots=True)
class Row:
    """A row's cache: its own records (capacity, record bytes) from token `shared` on, those before in `prefix`."""

    layout: RecordLayout
    own: Array
    prefix: Array
    shared: int
    place: Place
    """Where its own ones begin, if there are no others."""

    def parts(self, which: int, first: int, last: int) -> Sequence[tuple[Array, Array | None]]:
        """K (`which` 0) or V (1) of some tokens, those in the prefix first, as `section` gives them."""
        middle = min(max(first, self.shared), last)
        parts = self.prefix[first:middle], self.own[max(0, middle - self.shared) : max(0, last - self.shared)]
        return [section(records, self.layout, which) for records in parts if len(records)]

    def held(self, which: int, tokens: slice, heads: slice) -> Array:
        """K (`which` 0) or V (1) of some tokens and heads in float32, (T, H, D)."""
        shape = (tokens.stop - tokens.start, heads.stop - heads.start, self.layout.head_width)
        found = rest = torch.empty(shape, dtype=torch.float32, device=self.own.device)
        for codes, pairs in self.parts(which, tokens.start, tokens.stop):
            place, rest = rest[: len(codes)], rest[len(codes) :]
            if pairs is None:
                place.copy_(codes[:, heads])
            else:
                unpack(codes[:, heads], pairs[:, heads, :, 0], pairs[:, heads, :, 1], place, self.layout.group_size, 4)
        return found


def apart(array: Array, count: int, gap: int) -> Array:
    """Arrays of one shape and type, (count, ...): `array` first, each next one `gap` bytes further in its memory."""
    return array.as_strided((count, *array.shape), (gap // array.itemsize, *array.stride()), array.storage_offset())


def joined(parts: Sequence[Array], axis: int) -> Array:
    """They as one array: itself, if it is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


class CacheOperators(RowOperators, HostSegments):
    """The part of the port that is about the cache. `_fuses`: `FUSED` is there."""

    _fuses: bool

    def cache_rows(
        self, records: Sequence[Array], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> Sequence[Row]:
        def cut(content: Any) -> Array:
            return content[: len(content) // layout.record_bytes * layout.record_bytes].view(-1, layout.record_bytes)

        found = []
        for own, prefix in zip(map(cut, records), prefixes or [None] * len(records), strict=True):
            place = None if prefix else (own.untyped_storage().data_ptr(), own.storage_offset())
            found.append(Row(layout, own, cut(prefix[0]) if prefix else own, prefix[1] if prefix else 0, place))
        return found

    def append(self, rows: Sequence[Row], segments: Segments, k: Array, v: Array) -> None:
        """Records of all new tokens are made together, and go to their rows in one copy each."""
        layout = rows[0].layout
        for tokens in pieces(k.shape, self._most):
            made = torch.zeros((tokens.stop - tokens.start, layout.record_bytes), dtype=torch.uint8, device=k.device)
            for which, values in enumerate((k[tokens], v[tokens])):
                codes, pairs = section(made, layout, which)
                by_head = values.unflatten(-1, (layout.heads, layout.head_width))
                if pairs is None:
                    codes.copy_(by_head)
                else:
                    quantize(by_head.float(), codes, pairs, layout.group_size)
            together = len(k) if len(made) == len(k) else 0  # else a row's new tokens may be in several pieces
            for run in even_runs(segments, [row.place for row in rows], together):
                here, end = max(run.first, tokens.start), min(run.last, tokens.stop)
                if here < end:
                    fresh = made[here - tokens.start : end - tokens.start].unflatten(0, (run.count, -1))
                    start = run.past - rows[run.row].shared + here - run.first
                    apart(rows[run.row].own[start : start + fresh.shape[1]], run.count, run.gap).copy_(fresh)

    def attend(self, rows: Sequence[Row], segments: Segments, q: Array, scale: float, out: Array) -> Array:
        """Row by row, or by a kernel that does so, so that no bit of a row depends on another one."""
        layout, most = rows[0].layout, 2 * self._most  # of queries, and of results, if they are in float16
        by_head = layout.heads, layout.head_width
        queries, results = q.unflatten(-1, by_head), out.unflatten(-1, by_head)
        fuses = self._fuses and not layout.quantized and layout.head_width % FUSED_WIDTH == 0
        tokens = most // q.shape[1] if fuses else 0
        for run in even_runs(segments, [row.place for row in rows], tokens, SECTION_BYTES):
            row, total = rows[run.row], run.past + run.new
            if fuses and (not row.shared or total * q.shape[1] <= most):  # what is shared is copied
                for part in run.cut(tokens):
                    self._attend_fused(row, part, queries, scale, results)
                continue
            for heads in pieces((by_head[0], total), self._most):
                for some in pieces((run.new, total * (heads.stop - heads.start)), self._most):
                    place = slice(run.first + some.start, run.first + some.stop)
                    asked = (queries[place, heads].float() * scale).transpose(0, 1)
                    results[place, heads] = self._attended(row, heads, asked, run.past + some.stop).transpose(0, 1)
        return out

    def _attend_fused(self, row: Row, run: EvenRun, queries: Array, scale: float, results: Array) -> None:
        """A run of rows that begins with `row`, in one call."""
        total, tokens = run.past + run.new, slice(run.first, run.last)
        held = (joined([codes for codes, _ in row.parts(which, 0, total)], 0) for which in (0, 1))
        k, v = (apart(each, run.count, run.gap).transpose(1, 2) for each in held)
        asked = queries[tokens].clone(memory_format=torch.contiguous_format)  # aligned, as the kernel needs it
        asked = asked.unflatten(0, (run.count, run.new)).transpose(1, 2)
        causal = torch.nn.attention.bias.causal_lower_right(run.new, total) if run.new > 1 else None
        with fused_kernel:
            found = scaled_dot_product_attention(asked, k, v, causal, scale=scale)
        results[tokens] = found.transpose(1, 2).flatten(0, 1)

    def _attended(self, row: Row, heads: slice, q: Array, total: int) -> Array:
        """q (H, S, D), scaled, of the last S of `total` tokens -> causal attention (H, S, D) in float32."""
        new = q.shape[1]
        tiles = list(pieces((total, q.shape[0] * q.shape[2]), self._most))
        with exact_products:
            scores = joined([torch.bmm(q, row.held(0, tile, heads).permute(1, 2, 0)) for tile in tiles], -1)
            if new > 1:
                later = torch.ones((new, new), dtype=torch.bool, device=q.device).triu_(1)
                scores[:, :, total - new :].masked_fill_(later, -torch.inf)
            weights = torch.softmax(scores, -1)
            sums = (torch.bmm(weights[:, :, tile], row.held(1, tile, heads).transpose(0, 1)) for tile in tiles)
            return reduce(torch.Tensor.add_, sums)
