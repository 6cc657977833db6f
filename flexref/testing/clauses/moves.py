"""Clauses on what a move copies; a clause is `clause(backend, data)`."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from flexref.backend.parts import Parts
from flexref.backend.protocol import LANES, Backend, Lane, LaneStep, Move, Span
from flexref.testing.bench import Bench, assert_same_bits, move
from flexref.testing.strategies import seeds

lanes = st.sampled_from(LANES)


class _Spots:
    """Two buffers of each tier, and the bytes that they must hold."""

    def __init__(self, bench: Bench, data: st.DataObject, size: int) -> None:
        self._bench = bench
        self.content = [
            np.random.default_rng(data.draw(seeds)).integers(0, 256, size).astype(np.uint8) for _ in range(4)
        ]
        self._host, self._device = ([bench.buffer(tier, size) for _ in range(2)] for tier in ("host", "device"))
        self.buffers = [*self._host, *self._device]
        for buffer, values in zip(self._host, self.content[:2], strict=True):
            bench.host_bytes(buffer)[:] = values
        for buffer, values in zip(self._device, self.content[2:], strict=True):
            bench.backend.upload(values, out=bench.backend.view(buffer, 0, (size,), "uint8"))
        bench.backend.mark().wait()

    def check(self, lane: Lane, steps: Sequence[LaneStep], what: str) -> None:
        """Let a lane do the steps, and raise `AssertionError` unless every byte is what it must be."""
        ticket = self._bench.backend.submit(lane, steps, ())
        self._bench.backend.wait(ticket)
        ticket.wait()
        host = (self._bench.host_bytes(buffer).copy() for buffer in self._host)
        found = [*host, *map(self._bench.bytes_of, self._device)]
        for actual, expected in zip(found, self.content, strict=True):
            assert_same_bits(actual, expected, what)


def moves_copy_exactly_their_bytes(backend: Backend, data: st.DataObject) -> None:
    """A move copies the bytes of its source span, piece by piece, to its target span and no others, on either tier."""
    with Bench(backend) as bench:
        size = 600
        spots = _Spots(bench, data, size)
        steps: list[LaneStep] = []
        for _ in range(data.draw(st.integers(1, 6))):
            source, target = data.draw(st.permutations(range(4)))[:2]
            count = data.draw(st.integers(1, 5))
            nbytes = data.draw(st.integers(1, size // count))
            widest = max(nbytes, (size - nbytes) // max(1, count - 1))
            strides = [data.draw(st.integers(nbytes, widest)) for _ in range(2)]
            starts = [data.draw(st.integers(0, size - nbytes - (count - 1) * stride)) for stride in strides]
            spans = [
                Span(spots.buffers[place], start, nbytes, count, stride)
                for place, start, stride in zip((source, target), starts, strides, strict=True)
            ]
            steps.append(move(*spans))
            for piece in range(count):
                first, goal = (start + piece * stride for start, stride in zip(starts, strides, strict=True))
                spots.content[target][goal : goal + nbytes] = spots.content[source][first : first + nbytes]
        spots.check(data.draw(lanes), steps, "a buffer after moves")


def moves_copy_exactly_their_parts(backend: Backend, data: st.DataObject) -> None:
    """A move with `parts` copies these, each from its place in the source to that in the target, and no other byte."""
    with Bench(backend) as bench:
        size = 600
        spots = _Spots(bench, data, size)
        steps: list[LaneStep] = []
        for _ in range(data.draw(st.integers(1, 4))):
            spans, bytes_of_spans = [], []
            for place in data.draw(st.permutations(range(4)))[:2]:
                start = data.draw(st.integers(0, size - 1))
                span = Span(spots.buffers[place], start, data.draw(st.integers(1, size - start)))
                spans.append(span)
                bytes_of_spans.append(spots.content[place][start : span.end])
            (source, target), each = bytes_of_spans, []
            for here, end in pairwise(sorted(data.draw(st.sets(st.integers(0, target.size), max_size=6)))):
                nbytes = min(end - here, source.size)
                there = data.draw(st.integers(0, source.size - nbytes))
                if data.draw(st.booleans()):
                    each.append((there, here, nbytes))
                    target[here : here + nbytes] = source[there : there + nbytes]
            parts = Parts.of(each, source.size, target.size)
            steps.append(Move("a move in parts", spans[0], spans[1], parts))
        spots.check(data.draw(lanes), steps, "a buffer after moves in parts")
