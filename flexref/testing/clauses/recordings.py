"""Clauses on operators that are recorded and replayed; a clause is `clause(backend, data)`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import Array, Backend
from flexref.backend.records import RecordLayout
from flexref.check.tolerances import Values
from flexref.errors import FlexrefError
from flexref.testing.bench import Bench, assert_same_bits
from flexref.testing.strategies import layouts, numbers, seeds

LAYERS = 2
PLACES, CAPACITY = 3, 18
"""Places for rows' caches, and the tokens that each holds."""

_ids = st.integers(0, 8)
_lengths = st.integers(0, CAPACITY - 1)


class _DecodingRows:
    """Rows of one new token each on their way through two small layers, whose caches have places for other rows too."""

    def __init__(self, bench: Bench, layout: RecordLayout, rows: int, seed: int) -> None:
        self.bench, self.layout, self._rows = bench, layout, rows
        width, be, dtype = layout.heads * layout.head_width, bench.backend, bench.dtype
        self.width = width
        tokens = PLACES * CAPACITY
        self._caches = [bench.buffer("device", tokens * layout.record_bytes) for _ in range(LAYERS)]

        def placed(number: int, shape: tuple[int, ...]) -> Array:
            return bench.array(numbers(shape, dtype, "normal", seed + number))

        for cache in self._caches:
            be.upload(np.zeros(cache.nbytes, np.uint8), out=be.view(cache, 0, (cache.nbytes,), "uint8"))
        every = be.segments([0] * PLACES, [CAPACITY] * PLACES)
        for layer in range(LAYERS):
            k, v = (placed(10 * layer + part, (tokens, width)) for part in (0, 1))
            be.append(self.handle(layer, list(range(PLACES))), every, k, v)
        self._table, self._matrix = placed(30, (9, width)), placed(31, (3 * width, width))
        self._back, self._norm, self._bias = placed(32, (width, width)), placed(33, (width,)), placed(34, (3 * width,))
        self.ids = bench.array(np.zeros(rows, np.int32))
        self.x, self.copy = (bench.array(np.zeros((rows, width), dtype)) for _ in range(2))

    def records(self, layer: int, places: Sequence[int]) -> list[Array]:
        """The caches of the rows that have these places, in one layer."""
        size = CAPACITY * self.layout.record_bytes
        return [self.bench.backend.view(self._caches[layer], place * size, (size,), "uint8") for place in places]

    def handle(self, layer: int, places: Sequence[int]) -> Any:
        """The port's handle of them."""
        return self.bench.backend.cache_rows(self.records(layer, places), self.layout)

    def operators(self, handles: Sequence[Any], segments: Any) -> Callable[[], None]:
        """A call of every operator that may be recorded."""

        def call() -> None:
            be, width = self.bench.backend, self.width
            be.gather(self._table, self.ids, 0, self.x)
            be.add_rows(self.x, self._table, self.ids)
            for handle in handles:
                with be.frame():
                    h = be.layer_norm(self.x, self._norm, None, 1e-5)
                    qkv: Any = be.linear(h, self._matrix, self._bias)
                    be.append(handle, segments, qkv[:, width : 2 * width], qkv[:, 2 * width :])
                    context = be.empty((self._rows, width), self.bench.dtype)
                    be.attend(handle, segments, qkv[:, :width], 0.25, context)
                    be.activate(context, "relu")
                    be.linear(context, self._back, None, out=self.x, add=True)
            be.assign(self.copy, self.x)

        return call

    def state(self) -> list[Values]:
        """What the operators have written: hidden states, their copy, all records."""
        be = self.bench.backend
        return [be.download(self.x), be.download(self.copy), *(self.bench.bytes_of(cache) for cache in self._caches)]


def _assert_same(found: _DecodingRows, needed: _DecodingRows, what: str) -> None:
    names = ("results", "their copy", *(f"records of layer {layer}" for layer in range(LAYERS)))
    for name, one, other in zip(names, found.state(), needed.state(), strict=True):
        assert_same_bits(one, other, f"{name}, {what}")


def _drawn(bench: Bench, data: st.DataObject) -> tuple[_DecodingRows, _DecodingRows, int]:
    """The same group twice, and how many rows it has."""
    bench.workspace()
    layout, seed = data.draw(layouts(bench.dtype)), data.draw(seeds) % (1 << 31)
    rows = data.draw(st.integers(1, PLACES - 1))
    return _DecodingRows(bench, layout, rows, seed), _DecodingRows(bench, layout, rows, seed), rows


def a_recording_gives_the_bits_of_its_calls(backend: Backend, data: st.DataObject) -> None:
    """`record` runs nothing. Each `replay` has the bits of direct calls on what arrays hold then, in its turn.

    As many recordings as one likes may be there at a time, and be given back in any order.
    """
    with Bench(backend) as bench:
        group, twin, rows = _drawn(bench, data)
        places, past = list(range(rows)), [data.draw(st.integers(0, CAPACITY - 1)) for _ in range(rows)]
        turns = data.draw(st.lists(st.integers(0, 1), min_size=2, max_size=3))
        ids = [np.array(data.draw(st.lists(_ids, min_size=rows, max_size=rows)), np.int32) for _ in turns]
        order, called = data.draw(st.permutations((0, 1))), data.draw(st.booleans())
        calls, same = (
            each.operators([each.handle(layer, places) for layer in range(LAYERS)], backend.segments(past, [1] * rows))
            for each in (group, twin)
        )
        if called:
            calls()
            same()
        backend.upload(np.full(rows, 7, np.int32), out=group.ids)
        recordings = [backend.record(calls) for _ in order]
        _assert_same(group, twin, "when calls were recorded, and none of them ran")
        for recording in recordings:
            assert recording.nbytes > 0, f"nbytes of a recording is {recording.nbytes}, needed more than 0"
        for which, fed in zip(turns, ids, strict=True):
            for each in (group, twin):
                backend.upload(fed, out=each.ids)
            backend.replay(recordings[which])
            same()
            backend.upload(np.zeros(rows, np.int32), out=group.ids)  # too late to be seen
            _assert_same(group, twin, "replayed and called directly")
        for which in order:
            backend.forget(recordings[which])


def a_replay_knows_other_lengths_and_rows(backend: Backend, data: st.DataObject) -> None:
    """Lengths and rows that handles were renewed with are those of the next replay; those of the ones before are not.

    Rows of one new token each may grow, or give their places to as many others, without new handles.
    """
    with Bench(backend) as bench:
        group, twin, rows = _drawn(bench, data)
        past, new, places = [0] * rows, [1] * rows, list(range(rows))
        turns = data.draw(
            st.lists(st.sampled_from(((True, False), (False, True), (True, True))), min_size=1, max_size=3)
        )
        lengths = [data.draw(st.lists(_lengths, min_size=rows, max_size=rows)) for _ in turns]
        others = [data.draw(st.permutations(range(PLACES)))[:rows] for _ in turns]
        handles = [group.handle(layer, places) for layer in range(LAYERS)]
        segments = backend.segments(past, new)
        calls = group.operators(handles, segments)
        calls()
        twin.operators([twin.handle(layer, places) for layer in range(LAYERS)], backend.segments(past, new))()
        recording = backend.record(calls)
        for number, (grow, change) in enumerate(turns):
            if grow:
                past = lengths[number]
                assert backend.renew_segments(segments, past, new), f"{past} tokens need a new handle"
            if change:
                places = others[number]
                assert backend.renew_rows(handles, group.records(0, places)), "as many other rows need new handles"
            assert not backend.renew_segments(segments, [*past, 0], [*new, 1]), "one more row needs no handle"
            assert not backend.renew_rows(handles, group.records(0, [*places, 0])), "one more row needs no handles"
            backend.replay(recording)
            fresh = [twin.handle(layer, places) for layer in range(LAYERS)]
            twin.operators(fresh, backend.segments(past, new))()
            _assert_same(group, twin, f"replay {number + 1}, rows at {places} with {past} tokens")
        backend.forget(recording)


def a_choice_is_on_the_device_before_the_host_knows_it(backend: Backend, data: st.DataObject) -> None:
    """`sample_ahead` chooses as `sample` does, in its turn: later operators find the ids, and may change the logits."""
    with Bench(backend) as bench:
        bench.workspace()
        rows, vocabulary, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40)), 16
        temperature, seed = data.draw(st.sampled_from((0.0, 0.7))), data.draw(seeds) % (1 << 31)
        rule = temperature, data.draw(st.integers(0, vocabulary)), data.draw(st.sampled_from((0.4, 1.0)))
        found = numbers((rows, vocabulary), "float32", "normal", seed)
        draws = np.random.default_rng(seed).random(rows)
        logits, ids = bench.array(found), bench.array(np.full(3 * rows, -7, np.int32))
        table = bench.array(numbers((vocabulary, width), bench.dtype, "normal", seed + 1))
        gathered, needed = (bench.array(np.zeros((rows, width), bench.dtype)) for _ in range(2))
        expected = backend.sample(logits, *rule, draws)
        chosen = backend.sample_ahead(logits, *rule, draws, ids[:rows])
        backend.gather(table, ids[:rows], 0, gathered)
        backend.upload(-found, out=logits)
        known = chosen()
        assert known.dtype == np.int64, f"sample_ahead gives ids of type {known.dtype}, needed int64"
        assert known.tolist() == expected.tolist(), f"sample_ahead gives {known}, where sample gives {expected}"
        assert backend.download(ids).tolist() == [*expected, *[-7] * (2 * rows)], (
            "out has not the ids, and nothing else"
        )
        backend.gather(table, bench.array(expected.astype(np.int32)), 0, needed)
        assert_same_bits(backend.download(gathered), backend.download(needed), "rows of a table by ids chosen ahead")
        poisoned = found.copy()
        poisoned[rows - 1, vocabulary - 1] = np.nan
        backend.upload(poisoned, out=logits)
        fails = backend.sample_ahead(logits, *rule, draws, ids[:rows])
        try:
            fails()
        except FlexrefError:
            return
        raise AssertionError("sample_ahead gives ids of logits that are not finite")
