"""Which blocks of decode attention take what: the fastest of those that were measured, on a device where they fit."""

from collections.abc import Sequence

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.driver.variants import VARIANTS
from flexref_cupy.operators.decode_choice import DecodeChoice

from flexref.backend.records import RecordLayout

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

MULTIPROCESSORS = 132
HALVES, CODES = (RecordLayout(32, 128, "float16", scheme, 64) for scheme in ("none", "int4"))

CHOSEN: list[tuple[RecordLayout, list[int], str]] = [
    (HALVES, [64], "few"),
    (HALVES, [545], "few"),
    (HALVES, [545] * 2, "several"),
    (HALVES, [2048], "several"),
    (HALVES, [545] * 4, "some"),
    (HALVES, [300, 545, 700, 1000], "some"),
    (HALVES, [545] * 8, "rows"),
    (HALVES, [545] * 16, "rows"),
    (HALVES, [545] * 32, "rows"),
    (HALVES, [64] * 64, "short"),
    (HALVES, [545] * 64, "many"),
    (HALVES, [100, 1000] * 32, "many"),
    (CODES, [545], "few"),
    (CODES, [545] * 4, "some"),
    (CODES, [545] * 16, "rows"),
]
"""A layout, the keys of each row, and the role of the blocks that were fastest (see the port's README)."""


def choice(layout: RecordLayout, capability: tuple[int, int] = (9, 0)) -> DecodeChoice:
    return DecodeChoice(layout, capability, MULTIPROCESSORS)


def role_of(layout: RecordLayout, keys: Sequence[int], capability: tuple[int, int] = (9, 0)) -> str:
    """The role of the block that takes one new token of each row."""
    made = CupyBackend(cuda=EmulatedCuda(capability=capability, multiprocessors=MULTIPROCESSORS))
    chosen = choice(layout, capability)
    segments = made.segments([count - 1 for count in keys], [1] * len(keys))
    whole = chosen.of_rows(segments)
    block = whole or chosen.of_items(segments.padded_count, segments.most_single_keys)
    made.close()
    if whole is not None and whole == chosen.blocks.rows:
        return "rows"
    return next(role for role, one in chosen.blocks._asdict().items() if one == block)


@pytest.mark.parametrize(("layout", "keys", "role"), CHOSEN, ids=str)
def test_the_block_is_the_one_that_was_fastest(layout: RecordLayout, keys: list[int], role: str) -> None:
    assert role_of(layout, keys) == role


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)], ids=str)
@pytest.mark.parametrize("layout", [HALVES, CODES], ids=str)
def test_every_block_fits_the_shared_memory_of_its_device(layout: RecordLayout, capability: tuple[int, int]) -> None:
    chosen, room = choice(layout, capability), {(8, 0): 163 << 10, (9, 0): 227 << 10}.get(capability, 99 << 10)
    for block in chosen.blocks:
        assert block is not None
        own = block.heads * (2 * layout.head_width + 1024) + block.heads * block.team * 512 + 64
        assert chosen.shared_bytes(block) + own <= room


@pytest.mark.parametrize("layout", [HALVES, CODES], ids=str)
def test_an_older_device_has_blocks_of_48_kib(layout: RecordLayout) -> None:
    chosen = choice(layout, (7, 5))
    for block in filter(None, chosen.blocks):
        assert chosen.shared_bytes(block) <= 44 << 10
    assert (role_of(HALVES, [545] * 16, (7, 5)), chosen.blocks.rows is None) == ("many", layout is HALVES)


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (9, 0)], ids=str)
@pytest.mark.parametrize("width", [16, 64, 80, 128])
def test_every_block_that_may_be_chosen_is_a_variant(width: int, capability: tuple[int, int]) -> None:
    for scheme in ("none", "int4"):
        chosen = choice(RecordLayout(2, width, "float16", scheme, min(64, width)), capability)
        for block in filter(None, chosen.blocks):
            assert {**chosen.macros, **block.macros} in VARIANTS[chosen.operator(block)]
