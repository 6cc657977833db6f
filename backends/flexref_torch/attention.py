"""Records of a KV cache, written and attended to by PyTorch's functions; it knows no device and no workspace."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from flexref.backend.protocol import Prefix
from flexref.backend.records import RecordLayout
from flexref.storage.quant import LEVELS, group_bytes, group_runs
from flexref_torch.operators import Array, exact_products, pieces, unpack

Spans = Sequence[tuple[int, int, int]]
"""(first new token, token after the last, tokens in the cache before) of every row."""


def section(records: Array, layout: RecordLayout, which: int) -> tuple[Array, Array | None]:
    """K (`which` 0) or V (1): values (T, H, D) and None, or codes (T, H, packed) and pairs (T, H, G, 2)."""
    start = which * layout.value_offset
    codes = records[:, start : start + layout.codes_bytes]
    if not layout.quantized:
        return codes.view(getattr(torch, layout.dtype)).unflatten(-1, (layout.heads, layout.head_width)), None
    start += layout.pairs_offset
    pairs = records[:, start : start + layout.pairs_bytes].view(torch.float16)
    return codes.unflatten(-1, (layout.heads, layout.packed_width)), pairs.unflatten(-1, (layout.heads, -1, 2))


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

    def held(self, which: int, tokens: slice, heads: slice) -> Array:
        """K (`which` 0) or V (1) of some tokens and heads in float32, (T, H, D)."""
        layout, first, last = self.layout, tokens.start, tokens.stop
        shape = (last - first, heads.stop - heads.start, layout.head_width)
        found = torch.empty(shape, dtype=torch.float32, device=self.own.device)
        middle = min(max(first, self.shared), last)
        parts = self.prefix[first:middle], self.own[max(0, middle - self.shared) : max(0, last - self.shared)]
        for place, records in zip((slice(middle - first), slice(middle - first, None)), parts, strict=True):
            if len(records):
                codes, pairs = (part if part is None else part[:, heads] for part in section(records, layout, which))
                if pairs is None:
                    found[place] = codes
                else:
                    unpack(codes, pairs[..., 0], pairs[..., 1], found[place], layout.group_size, 4)
        return found


class CacheOperators:
    """The part of the port that is about the cache. `_most` as in `RowOperators`."""

    _most: int

    def cache_rows(
        self, records: Sequence[Array], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> Sequence[Row]:
        def cut(content: Any) -> Array:
            return content[: len(content) // layout.record_bytes * layout.record_bytes].view(-1, layout.record_bytes)

        named = zip(records, prefixes or [None] * len(records), strict=True)
        cuts = [(own, *(prefix or (own, 0))) for own, prefix in named]
        return [Row(layout, cut(own), cut(prefix), shared) for own, prefix, shared in cuts]

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Spans:
        return [(end - count, end, before) for end, count, before in zip(accumulate(new), new, past, strict=True)]

    def append(self, rows: Sequence[Row], segments: Spans, k: Array, v: Array) -> None:
        """Records of all new tokens are made together, and go to their rows in one copy each."""
        layout = rows[0].layout
        for tokens in pieces(k.shape, self._most):
            shape = (tokens.stop - tokens.start, layout.record_bytes)
            made = torch.zeros(shape, dtype=torch.uint8, device=k.device)
            for which, values in enumerate((k[tokens], v[tokens])):
                codes, pairs = section(made, layout, which)
                by_head = values.unflatten(-1, (layout.heads, layout.head_width))
                if pairs is None:
                    codes.copy_(by_head)
                else:
                    quantize(by_head.float(), codes, pairs, layout.group_size)
            for row, (first, last, past) in zip(rows, segments, strict=True):
                here, end = max(first, tokens.start), min(last, tokens.stop)
                if here < end:
                    place = past - row.shared + here - first
                    row.own[place : place + end - here] = made[here - tokens.start : end - tokens.start]

    def attend(self, rows: Sequence[Row], segments: Spans, q: Array, scale: float, out: Array) -> Array:
        """Row by row, so that no bit of a row depends on another one."""
        by_head = rows[0].layout.heads, rows[0].layout.head_width
        queries, results = q.unflatten(-1, by_head), out.unflatten(-1, by_head)
        for row, (first, last, past) in zip(rows, segments, strict=True):
            total = past + last - first
            for heads in pieces((by_head[0], total), self._most):
                for some in pieces((last - first, total * (heads.stop - heads.start)), self._most):
                    place = slice(first + some.start, first + some.stop)
                    asked = (queries[place, heads].float() * scale).transpose(0, 1)
                    results[place, heads] = self._attended(row, heads, asked, past + some.stop).transpose(0, 1)
        return out

    def _attended(self, row: Row, heads: slice, q: Array, total: int) -> Array:
        """q (H, S, D), scaled, of the last S of `total` tokens -> causal attention (H, S, D) in float32."""
        new = q.shape[1]
        tiles = list(pieces((total, q.shape[0] * q.shape[2]), self._most))
        with exact_products:
            parts = [torch.bmm(q, row.held(0, tile, heads).permute(1, 2, 0)) for tile in tiles]
            scores = parts.pop() if len(parts) == 1 else torch.cat(parts, -1)
            del parts
            if new > 1:
                later = torch.ones((new, new), dtype=torch.bool, device=q.device).triu_(1)
                scores[:, :, total - new :].masked_fill_(later, -torch.inf)
            weights = torch.softmax(scores, -1)
            found = None
            for tile in tiles:
                part = torch.bmm(weights[:, :, tile], row.held(1, tile, heads).transpose(0, 1))
                found = part if found is None else found.add_(part)
        return found
