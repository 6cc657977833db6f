"""Ports that are wrong on purpose in their cache or attention, each with one bug: the contract must reject each."""

import threading
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.attention import CacheRows, Segments
from flexref_numpy.sections import Sections
from hypothesis.errors import Flaky

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref.errors import FlexrefError
from flexref.storage.quant import Quantized, dequantize
from flexref.testing import violation
from flexref.testing.clauses import attention, cache, prefixes
from flexref.testing.contract import CONTRACT, Clause


class AttendGivesHeads(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        result = super().attend(rows, segments, q, scale, out)
        return result.reshape(len(q), rows.layout.heads, rows.layout.head_width)


class UsesTheQueriesUp(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        result = super().attend(rows, segments, q, scale, out)
        q[...] *= scale
        return result


class SwapsKeysAndValues(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, v, k)


class AppendsOneTooFar(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, Segments(tuple(past + 1 for past in segments.past), segments.new), k, v)


class RefusesTheLastRecord(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        for records, (_, past, new) in zip(rows.records, segments, strict=True):
            if (past + new) * rows.layout.record_bytes >= records.nbytes:
                raise FlexrefError("the cache is full")
        super().append(rows, segments, k, v)


class ClearsTheSpareRecords(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, v)
        for records, (_, past, new) in zip(rows.records, segments, strict=True):
            records[(past + new) * rows.layout.record_bytes :] = 0


class CodesAreCutOff(NumpyBackend):
    """Rounds codes down instead of to the nearest."""

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, v)
        layout = rows.layout
        for records, (first, past, new) in zip(rows.records, segments, strict=True):
            for which, values in ((0, k), (1, v)) if layout.quantized else ():
                codes, pairs = Sections(layout).of(records, which, past, past + new)
                fresh = values[first : first + new].reshape(new, layout.heads, layout.head_width)
                for head_value in range(0, layout.head_width, layout.group_size):
                    # The first value of every group lies in the low nibble of the group's first byte.
                    group = head_value // layout.group_size
                    step, zero = (pairs[..., group, part].astype(np.float32) for part in (0, 1))
                    level = np.floor((fresh[..., head_value] - zero) / np.where(step > 0, step, np.inf))
                    place = group * ((layout.group_size + 1) // 2)
                    codes[..., place] = codes[..., place] & 0xF0 | np.clip(level, 0, 15).astype(np.uint8)


class ZeroBeforeScale(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, v)
        if rows.layout.quantized:
            for records, (_, past, new) in zip(rows.records, segments, strict=True):
                for which in (0, 1):
                    _, pairs = Sections(rows.layout).of(records, which, past, past + new)
                    pairs[...] = pairs[..., ::-1].copy()


class SharesScalesBetweenTokens(NumpyBackend):
    """Quantizes all new tokens of a row with the extremes of all of them."""

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        if rows.layout.quantized:
            k, v = k.copy(), v.copy()
            for _, (first, _, new) in zip(rows.records, segments, strict=True):
                for part in (k, v):
                    part[first : first + new, 0] = part[first : first + new].min()
        super().append(rows, segments, k, v)


class HostArray(np.ndarray):  # type: ignore[type-arg]
    """Memory that a device cannot reach."""


class TellsTiersApart(NumpyBackend):
    def allocate(self, tier: str, nbytes: int) -> Any:
        memory = super().allocate(tier, nbytes)
        return memory.view(HostArray) if tier == "host" else memory


class AppendsOnDeviceOnly(TellsTiersApart):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        if not isinstance(k, HostArray):
            super().append(rows, segments, k, v)


class RoundsOtherwiseOnALane(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        result = super().attend(rows, segments, q, scale, out)
        if threading.current_thread() is not threading.main_thread():
            np.nextafter(result, np.float32(1), out=result)
        return result


class AttendsOnDeviceOnly(TellsTiersApart):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        return out if isinstance(q, HostArray) else super().attend(rows, segments, q, scale, out)


def plain_attention(rows: CacheRows, segments: Segments, q: Any, scale: float, out: Any, change: Any) -> Any:
    """Attention as a textbook has it, whose scores, mask and values went through `change`."""
    layout = rows.layout
    for row, (records, (first, past, new)) in enumerate(zip(rows.records, segments, strict=True)):
        keys = past + new
        parts = [expanded(records, layout, which, keys) for which in (0, 1)]
        queries = q[first : first + new].reshape(new, layout.heads, layout.head_width)
        visible = np.arange(keys) <= past + np.arange(new)[:, None]
        with np.errstate(all="ignore"):
            scores = np.einsum("shd,thd->hst", queries, parts[0]) * np.float32(scale)
            weights, values = change(scores, visible, parts[1], row)
            weights = weights / weights.sum(-1, keepdims=True)
            result = np.einsum("hst,thd->shd", weights, values)
        out[first : first + new] = result.reshape(new, -1)
    return out


def expanded(records: Any, layout: RecordLayout, which: int, tokens: int) -> Any:
    """K or V (T, H, D) of the first tokens of a row."""
    codes, pairs = Sections(layout).of(records, which, 0, tokens)
    if pairs is None:
        return codes
    return dequantize(Quantized(codes, pairs[..., 0], pairs[..., 1], layout.head_width, layout.group_size))


def softmax(scores: Any) -> Any:
    """Weights whose sum is left to the caller."""
    return np.exp(scores - scores.max(-1, keepdims=True))


class ChangedAttention(NumpyBackend):
    """Textbook attention with one change."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        return plain_attention(rows, segments, q, scale, out, self.change)

    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        return softmax(np.where(visible, scores, -np.inf)), values


class SeesOneTokenAhead(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        ahead = np.concatenate((np.ones_like(visible[:, :1]), visible[:, :-1]), axis=1)
        return softmax(np.where(ahead, scores, -np.inf)), values


class WeighsSingleQueriesFiner(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        weights, values = super().change(scores, visible, values, row)
        return (weights.astype(np.float64), values.astype(np.float64)) if len(visible) == 1 else (weights, values)


class ForgetsThePast(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        past = scores.shape[2] - scores.shape[1]
        seen = visible & (np.arange(scores.shape[2]) >= past)
        return softmax(np.where(seen, scores, -np.inf)), values


class MasksWithALargeNumber(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        return softmax(scores + np.where(visible, np.float32(0), np.float32(-1e9))), values


class MasksAfterTheSum(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        return softmax(scores) * visible, values


class SoftmaxWithoutMaximum(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        return np.exp(np.where(visible, scores * np.float32(64), -np.inf)) ** np.float32(1 / 64), values


class SoftmaxOverflows(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        return np.exp(np.where(visible, scores, -np.inf)), values


class DecodesWithoutItself(ChangedAttention):
    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        if scores.shape[1] == 1 and scores.shape[2] > 1:
            visible = np.arange(scores.shape[2])[None] < scores.shape[2] - 1
        return super().change(scores, visible, values, row)


class RowsShareAMaximum(ChangedAttention):
    """Scores are shifted by what the first row of the call was shifted by: right, but in other bits."""

    def __init__(self) -> None:
        super().__init__()
        self._shift = np.float32(0)

    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        masked = np.where(visible, scores, -np.inf)
        self._shift = masked.max() if row == 0 else self._shift
        return np.exp(masked - self._shift), values


class TakesRowsForEven(NumpyBackend):
    """Rows in one buffer lie as far from each other as the second from the first, it thinks."""

    def cache_rows(self, records: Any, layout: RecordLayout, prefixes: Any = None) -> Any:
        whole = records[0].base
        if len(records) > 1 and all(each.base is whole for each in records):
            first, second = (each.ctypes.data - whole.ctypes.data for each in records[:2])
            places = (first + n * (second - first) for n in range(len(records)))
            end = whole.nbytes - records[0].nbytes
            records = [whole[place : place + records[0].nbytes] for place in np.clip(list(places), 0, end)]
        return super().cache_rows(records, layout, prefixes)


class SumsInAnyOrder(ChangedAttention):
    """As atomic sums do: within the bound, but never the same bits again."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)

    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        order = self._random.permutation(scores.shape[2])
        weights, values = super().change(scores, visible, values, row)
        return weights[..., order], values[order]


class LongRowsAreCut(ChangedAttention):
    """Sees the last 128 keys only: a tile of a kernel whose loop runs once."""

    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        recent = np.arange(scores.shape[2]) >= scores.shape[2] - 128
        return super().change(scores, visible & recent, values, row)


class DecodesWrongOverWholeChunks(NumpyBackend):
    """Where chunks of keys are read as they lie: in records of numbers, by one query of a row that has seen a chunk."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        super().attend(rows, segments, q, scale, out)
        for first, past, new in () if rows.layout.quantized else segments:
            if new == 1 and past >= CHUNK_TOKENS:
                out[first] += 1
        return out


class DecodesLongRowsInOtherBits(NumpyBackend):
    """Chunks of keys that are read as they lie are added up in another order: right, but for one query alone."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        super().attend(rows, segments, q, scale, out)
        for first, past, new in segments:
            if new == 1 and past >= CHUNK_TOKENS:
                out[first, -1] = np.nextafter(out[first, -1], np.float32(1))
        return out


class MultipliesStaleRecordsByZero(NumpyBackend):
    """Reads a whole tile of keys, also beyond the last record, and trusts that a weight of zero removes them."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        super().attend(rows, segments, q, scale, out)
        for records, (first, past, new) in zip(rows.records, segments, strict=True):
            with np.errstate(all="ignore"):
                stale = expanded(records, rows.layout, 1, past + new + 1)[-1].reshape(-1)
                out[first : first + new] += stale * np.float32(0)
        return out


class ForgetsTheBeginningUnlessApart(ChangedAttention):
    """Wrong only for rows that need no bits of their own."""

    def change(self, scores: Any, visible: Any, values: Any, row: int) -> tuple[Any, Any]:
        if not self._rows_apart:
            visible = visible & (np.arange(scores.shape[2]) >= min(1, scores.shape[2] - 1))
        return super().change(scores, visible, values, row)


class AddsToItsResult(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        before = out.copy()
        super().attend(rows, segments, q, scale, out)
        out += before
        return out


class ScratchTooSmall(NumpyBackend):
    """Keeps one scratch for all heads: the second head reads the first one's keys."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        super().attend(rows, segments, q, scale, out)
        if rows.layout.heads > 1 and rows.layout.quantized:
            width = rows.layout.head_width
            out[:, width : 2 * width] = out[:, :width]
        return out


class CopiesPrefixes(NumpyBackend):
    """Attends over copies of all records of a row; what the copy of a prefix holds went through `changed`."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        size = rows.layout.record_bytes
        copies = [
            own if named is None else np.concatenate((self.changed(named[0], own, named[1], size), own))
            for own, named in zip(rows.records, rows.prefixes, strict=True)
        ]
        return super().attend(self.cache_rows(copies, rows.layout), segments, q, scale, out)

    def changed(self, prefix: Any, own: Any, tokens: int, size: int) -> Any:
        return prefix[: tokens * size]


class ReadsThePrefixFromTheRowsOwn(CopiesPrefixes):
    def changed(self, prefix: Any, own: Any, tokens: int, size: int) -> Any:
        return np.resize(own, tokens * size)


class ReadsThePrefixAChunkOff(CopiesPrefixes):
    """Its second chunk first, and its first one last."""

    def changed(self, prefix: Any, own: Any, tokens: int, size: int) -> Any:
        return np.roll(prefix[: tokens * size], -CHUNK_TOKENS * size)


class CopiesPrefixesTooEarly(CopiesPrefixes):
    """When the handle is made: a row of the same call has not filled it yet."""

    def cache_rows(self, records: Any, layout: RecordLayout, prefixes: Any = None) -> Any:
        named = [prefix and (prefix[0].copy(), prefix[1]) for prefix in prefixes or ()]
        return super().cache_rows(records, layout, named or None)


class AppendsToThePrefix(NumpyBackend):
    """Writes a row's new tokens where its own array would hold them if it had all."""

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, v)
        size = rows.layout.record_bytes
        for named, (_, past, _) in zip(rows.prefixes, segments, strict=True):
            if named is not None:
                named[0][past * size : (past + 1) * size] = 0


WRONG: tuple[tuple[type[NumpyBackend], Clause], ...] = (
    (UsesTheQueriesUp, attention.attend_is_causal_attention),
    (AttendGivesHeads, cache.cache_operators_keep_their_shapes),
    (SwapsKeysAndValues, cache.append_writes_the_records),
    (AppendsOneTooFar, cache.append_writes_the_records),
    (RefusesTheLastRecord, cache.append_writes_the_records),
    (ClearsTheSpareRecords, cache.append_writes_the_records),
    (CodesAreCutOff, cache.append_quantizes_by_the_law),
    (ZeroBeforeScale, cache.append_quantizes_by_the_law),
    (SharesScalesBetweenTokens, cache.appends_do_not_depend_on_other_rows),
    (AppendsOnDeviceOnly, cache.append_works_on_host_memory),
    (RoundsOtherwiseOnALane, attention.host_attention_runs_beside_operators),
    (AttendsOnDeviceOnly, attention.attend_works_on_host_memory),
    (SeesOneTokenAhead, attention.attend_is_causal_attention),
    (SeesOneTokenAhead, attention.later_tokens_have_no_effect),
    (ForgetsThePast, attention.attend_is_causal_attention),
    (ForgetsThePast, attention.a_prefill_is_a_shorter_one_and_decodes),
    (SoftmaxOverflows, attention.attend_is_causal_attention),
    (SoftmaxWithoutMaximum, attention.attend_is_causal_attention),
    (ForgetsTheBeginningUnlessApart, attention.attend_is_causal_attention),
    (LongRowsAreCut, attention.attend_is_causal_attention),
    (DecodesWrongOverWholeChunks, attention.attend_is_causal_attention),
    (AddsToItsResult, attention.attend_is_causal_attention),
    (ScratchTooSmall, attention.attend_is_causal_attention),
    (DecodesWithoutItself, attention.a_prefill_is_a_shorter_one_and_decodes),
    (MasksWithALargeNumber, attention.later_tokens_have_no_effect),
    (MasksAfterTheSum, attention.later_tokens_have_no_effect),
    (MultipliesStaleRecordsByZero, attention.stale_records_have_no_effect),
    (RowsShareAMaximum, attention.attention_does_not_depend_on_other_rows),
    (TakesRowsForEven, attention.rows_in_one_buffer_are_as_good_as_rows_apart),
    (SumsInAnyOrder, attention.attention_repeats_its_bits),
    (WeighsSingleQueriesFiner, attention.a_row_is_read_in_any_pieces),
    (DecodesLongRowsInOtherBits, attention.a_row_is_read_in_any_pieces),
    (ReadsThePrefixFromTheRowsOwn, prefixes.a_shared_prefix_is_as_good_as_a_copy),
    (ReadsThePrefixAChunkOff, prefixes.a_shared_prefix_is_as_good_as_a_copy),
    (CopiesPrefixesTooEarly, prefixes.a_shared_prefix_is_as_good_as_a_copy),
    (AppendsToThePrefix, prefixes.a_shared_prefix_is_as_good_as_a_copy),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[NumpyBackend], clause: Clause) -> None:
    backend = port()
    assert isinstance(violation(backend, clause), AssertionError | FlexrefError | Flaky)  # a race may show only once
    backend.close()


@pytest.mark.parametrize(
    ("port", "clause"),
    [
        (DecodesWrongOverWholeChunks, attention.attend_is_causal_attention),
        (DecodesLongRowsInOtherBits, attention.a_row_is_read_in_any_pieces),
    ],
    ids=lambda part: part.__name__,
)
def test_a_port_that_decodes_wrong_is_rejected_by_as_many_examples_as_a_conformance_run_has(
    port: type[NumpyBackend], clause: Clause
) -> None:
    backend = port()
    assert isinstance(violation(backend, clause, 100), AssertionError)
    backend.close()


def test_every_clause_on_caches_rejects_a_port() -> None:
    here = {clause for clause in CONTRACT if clause.__module__ in (m.__name__ for m in (attention, cache, prefixes))}
    assert {clause for _, clause in WRONG} == here


def test_copied_prefixes_themselves_are_right() -> None:
    """Else the ports that change them would be rejected for another reason than their change."""
    backend = CopiesPrefixes()
    assert violation(backend, prefixes.a_shared_prefix_is_as_good_as_a_copy, 100) is None
    backend.close()


def test_textbook_attention_itself_is_right() -> None:
    """Else the ports that change it would be rejected for another reason than their change."""
    backend = ChangedAttention()
    assert violation(backend, attention.attend_is_causal_attention, 100) is None
    backend.close()
