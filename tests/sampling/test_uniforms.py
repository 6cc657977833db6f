"""The counter-based generator: the published values, and that a number depends on seed, row and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.sampling.uniforms import FEW_ROWS, philox, uniform, uniforms

WORDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_values_that_its_authors_published(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """The known answers of Random123, the authors' own library; of integers as of arrays."""
    assert philox(counter, key) == expected
    first, second, third, fourth = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((first, second, third, fourth), key)) == expected


@given(seed=WORDS, rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=2 * FEW_ROWS))
def test_a_rows_number_does_not_depend_on_its_neighbours(seed: int, rows: list[tuple[int, int]]) -> None:
    together = uniforms(seed, [row for row, _ in rows], [step for _, step in rows])
    assert together.tolist() == [uniform(seed, row, step) for row, step in rows]


@given(seed=WORDS, row=WORDS, step=WORDS)
def test_a_number_is_in_the_unit_interval_and_a_multiple_of_its_grid(seed: int, row: int, step: int) -> None:
    value = uniform(seed, row, step)
    assert 0 <= value < 1
    assert (value * 2**53).is_integer()


def test_one_step_for_all_rows_is_that_step_for_each() -> None:
    assert uniforms(9, range(5), 3).tolist() == uniforms(9, range(5), [3] * 5).tolist()


def test_seeds_rows_and_steps_all_matter() -> None:
    grid = [(seed, row, step) for seed in (0, 1, 2**32, 2**63) for row in (0, 1, 2**32) for step in (0, 1, 2**32)]
    assert len({uniform(*point) for point in grid}) == len(grid)


def test_the_numbers_fill_the_unit_interval_evenly() -> None:
    """Of n even numbers the largest gap to the diagonal is above 2.5 / sqrt(n) once in 130,000 seeds (Kolmogorov)."""
    values = np.sort(uniforms(1, range(10_000), 0))
    diagonal = np.arange(values.size) / values.size
    assert np.abs(values - diagonal).max() < 2.5 / np.sqrt(values.size) + 1 / values.size
