"""What the numpy port attends to together: every query once, in tiles whose bits agree, within the scratch."""

import numpy as np
import pytest
from flexref_numpy import NumpyBackend, batches
from flexref_numpy.attention import Segments
from flexref_numpy.batches import HEIGHTS, TILE_QUERIES, Room, heights
from flexref_numpy.scratch import Scratch
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.testing import violation
from flexref.testing.clauses import attention

LENGTHS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 150)), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 6), st.sampled_from((1, 8, 33, 64)), st.sampled_from((1 << 16, 1 << 18, 1 << 22)))
def test_every_query_is_in_one_batch_that_fits_the_scratch(
    lengths: list[tuple[int, int]], heads: int, width: int, nbytes: int
) -> None:
    past, new = (tuple(column) for column in zip(*lengths, strict=True))
    scratch, seen = Scratch(nbytes), np.zeros(sum(new), int)
    owner = np.repeat(np.arange(len(new)), new)
    position = np.concatenate([before + np.arange(count) for before, count in lengths])
    for batch, parts in Segments(past, new).batches(scratch, heads, width):  # places outside a half raise
        tokens = np.arange(sum(new))[batch.tokens].reshape(batch.shape)
        seen[tokens] += 1
        assert len(parts) == len(batch.some)
        assert [part.start for part in batch.some] == [0, *(part.stop for part in batch.some[:-1])]
        assert batch.some[-1].stop == heads
        assert (owner[tokens] == np.array(batch.rows)[:, None]).all()
        keys = np.arange(batch.chunks * CHUNK_TOKENS)
        hidden = np.zeros((*batch.shape, len(keys)), bool)
        if batch.hidden is not None:
            hidden[..., batch.first_hidden :] = batch.hidden[:, 0]
        assert (hidden == (keys > position[tokens][..., None])).all()
        assert not hidden[..., : CHUNK_TOKENS * (batch.chunks - 1)].all(axis=(0, 1)).any()
    assert (seen == 1).all()


@pytest.mark.parametrize("width", [1, 12, 33, 64, 128])
def test_queries_are_filled_up_to_tiles_whose_bits_agree(width: int) -> None:
    known = heights(width)
    assert TILE_QUERIES in known
    assert set(known) <= set(HEIGHTS)
    room = Room(1 << 19, 4, width)
    for queries in range(1, 129):
        tile = room.tile(queries)
        assert tile in known
        assert room.padded(queries) % tile == 0
        assert room.padded(queries) <= max(1.25 * queries, queries + known[-1] - 1)


def test_tiles_of_other_bits_are_seen_by_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a library whose products of many rows round in another way: then only rows that come alone differ."""
    backend = NumpyBackend()
    monkeypatch.setattr(batches, "heights", lambda width: (16, 4, 2))
    multiply = np.matmul

    def other(left: np.ndarray, right: np.ndarray, **how: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        result = multiply(left, right, **how)
        if left.shape[-2] == 16:
            result *= np.float32(1 + 2.0**-22)
        return result  # type: ignore[no-any-return]

    monkeypatch.setattr(np, "matmul", other)
    assert isinstance(violation(backend, attention.a_row_is_read_in_any_pieces), AssertionError)
    backend.close()
