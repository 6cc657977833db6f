"""The CuPy port's attention on an emulated device: what the layouts of the contract's clauses do not reach."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from emulated_cuda import EmulatedCuda
from flexref_cupy import CupyBackend
from flexref_cupy.device import COUNTERS_BYTES
from flexref_cupy.memory import Tensor
from flexref_cupy.operators import segments
from flexref_cupy.operators.decode_choice import DecodeChoice
from flexref_cupy.operators.segments import MOST_SPLITS, SEGMENT_KEYS
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.backend.records import RecordLayout
from flexref.check import reference
from flexref.check.tolerances import Values, assert_within, attention_bound, exact
from flexref.errors import PolicyError
from flexref.testing.bench import Bench, Guarded, assert_same_bits, guard_values
from flexref.testing.clauses.cache import CacheBench
from flexref.testing.strategies import numbers, seeds

EXACT = [
    *(("none", width, 64) for width in (16, 64, 80, 128)),
    *(("int4", *both) for both in ((16, 16), (64, 32), (64, 64), (80, 64), (128, 32), (128, 64), (128, 128))),
]
"""Scheme, head width and group size of the layouts that kernels know as constants."""

LOOSE = [("none", 96, 64), ("none", 129, 64), ("none", 256, 64), ("int4", 100, 7), ("int4", 72, 64), ("int4", 256, 128)]
"""Some of those that they do not."""

WAYS = (*((role, False) for role in ("many", "some", "several", "few", "short")), ("many", True), ("rows", True))
"""Roles of blocks of decode, see `DecodeBlocks`, that take items or whole rows."""

DECODES = ((0, 15, 16, 17), (255, 256, 300), (800,))
"""Past tokens: at the edges of 16 keys, of one split and of two, and of several splits."""

PIECES = (
    *((token, token + 1) for token in (0, 15, 16, 63, 255, 256, 257, 511, 512, 516)),
    *((3, 30), (200, 271), (250, 260), (511, 514), (450, 517)),
)
"""First and last tokens of what is read at once: across the edges of steps, of tiles, and of one segment and of two."""

PREFILLS = (((0, 0), (64, 5)), ((3,), (70,)), ((63, 64), (2, 65)), ((49,), (17,)), ((0,), (130,)))
"""Past and new tokens: tiles of queries that are full, begin late and end early; a key that only one of 16 sees."""


@pytest.fixture(scope="module")
def port() -> Iterator[CupyBackend]:
    made = CupyBackend(cuda=EmulatedCuda())
    yield made
    made.close()


@pytest.fixture(scope="module")
def newer() -> Iterator[CupyBackend]:
    """A port on a device that copies beside its arithmetic."""
    made = CupyBackend(cuda=EmulatedCuda(capability=(9, 0)))
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["apart", "together"])
def apart(port: CupyBackend, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether rows have bits of their own; the port is told."""
    port.keep_rows_apart(request.param)
    yield request.param
    port.keep_rows_apart(True)


def ways(port: CupyBackend, kind: tuple[str, int, int]) -> list[tuple[str, bool]]:
    """Those of `WAYS` that differ on the port's device."""
    blocks = DecodeChoice(layout_of(kind), port.cuda.capability, 1).blocks
    found = {(getattr(blocks, role), whole): (role, whole) for role, whole in WAYS}
    return [way for (block, _), way in found.items() if block is not None]


def choose(monkeypatch: pytest.MonkeyPatch, role: str, whole: bool) -> None:
    """Have decode use the blocks of one role, see `DecodeBlocks`, and take whole rows or no row whole."""
    monkeypatch.setattr(DecodeChoice, "of_items", lambda choice, *items: getattr(choice.blocks, role))
    monkeypatch.setattr(DecodeChoice, "of_rows", lambda choice, held: getattr(choice.blocks, role) if whole else None)


def launched(port: CupyBackend, kernels: str) -> int:
    """How often kernels were started whose names begin so."""
    return sum(count for (_, name), count in port.cuda.launches.items() if name.startswith(kernels))


def counters(port: CupyBackend) -> Values:
    """The port's counters."""
    address = port.device.scratch.counters
    return port.download(Tensor(address, (COUNTERS_BYTES // 4,), "int32", COUNTERS_BYTES // 4))


@dataclass
class Pass:
    """One pass over rows of a layout: caches that hold `past` tokens and the new ones, and queries of these."""

    bench: Bench
    layout: RecordLayout
    past: Sequence[int]
    new: Sequence[int]
    seed: int
    scale: float = 0.125

    def __post_init__(self) -> None:
        width = self.layout.heads * self.layout.head_width
        totals = [past + new for past, new in zip(self.past, self.new, strict=True)]
        self.k, self.v, self.q = (
            [numbers((count, width), "float16", "normal", self.seed + 3 * row + of) for row, count in enumerate(counts)]
            for of, counts in enumerate((totals, totals, self.new))
        )
        self.cache = CacheBench(self.bench, self.layout, totals)

    def filled(self) -> "Pass":
        """The same, with K and V in their records."""
        self.cache.append(self.k, self.v, [0] * len(self.past))
        return self

    def run(self, before: int = 0, after: int = 0, which: slice = slice(None)) -> Guarded:
        """The result of attention for some rows, between `before` and `after` guard columns."""
        q = self.cache.place(np.concatenate(self.q[which]), after, before)
        rows = sum(self.new[which])
        out = self.cache.place(guard_values((rows, self.cache.width), "float16"), before, after)
        self.cache.attend_into(out.array, q.array, self.new[which], self.past[which], self.scale, which)
        return out

    def check(self, found: Values) -> None:
        """Raise `AssertionError` unless `found` (T, E) is causal attention over the records."""
        split = np.split(found, np.cumsum(self.new)[:-1])
        for row, (past, actual) in enumerate(zip(self.past, split, strict=True)):
            keys, values = self.cache.held(row, past + self.new[row])
            q = exact(self.q[row].reshape(-1, self.layout.heads, self.layout.head_width))
            expected = reference.attend(q.values, keys.values, values.values, past, self.scale)
            bound = attention_bound(q, keys, values, past, self.scale, self.bench.arithmetic)
            shape = actual.shape
            assert_within(actual, expected.reshape(shape), bound.reshape(shape), f"row {row} of {self.layout}")


def layout_of(kind: tuple[str, int, int], heads: int = 3) -> RecordLayout:
    """The layout of a kind in `EXACT` or `LOOSE`."""
    scheme, width, group_size = kind
    return RecordLayout(heads, width, "float16", scheme, group_size)


@pytest.mark.parametrize("past", DECODES, ids=str)
@pytest.mark.parametrize("kind", EXACT, ids=str)
@pytest.mark.usefixtures("apart")
def test_one_new_token_per_row_is_one_launch(port: CupyBackend, kind: tuple[str, int, int], past: tuple[int]) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind), past, [1] * len(past), seed=len(past)).filled()
        before = launched(port, "attend_decode"), launched(port, "attend_prefill")
        out = this.run()
        assert (launched(port, "attend_decode"), launched(port, "attend_prefill")) == (before[0] + 1, before[1])
        this.check(out.read())
        out.assert_untouched_around("attend_decode")
        assert not counters(port).any()


@pytest.mark.parametrize("case", PREFILLS, ids=str)
@pytest.mark.parametrize("kind", EXACT, ids=str)
@pytest.mark.usefixtures("apart")
def test_several_new_tokens_per_row_are_one_launch(
    port: CupyBackend, kind: tuple[str, int, int], case: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind, heads=2), *case, seed=11).filled()
        before = launched(port, "attend_decode"), launched(port, "attend_prefill")
        out = this.run()
        assert (launched(port, "attend_decode"), launched(port, "attend_prefill")) == (before[0], before[1] + 1)
        this.check(out.read())
        out.assert_untouched_around("attend_prefill")


@pytest.mark.parametrize("kind", LOOSE, ids=str)
def test_other_layouts_go_number_by_number(port: CupyBackend, kind: tuple[str, int, int]) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind, heads=2), (0, 40, 20), (17, 1, 50), seed=5).filled()
        out = this.run()
        this.check(out.read())
        out.assert_untouched_around("attend")


@pytest.mark.parametrize("kind", [*EXACT, LOOSE[3]], ids=str)
@settings(max_examples=settings.default.max_examples // 4)  # for each of twelve layouts
@given(margins=st.tuples(st.sampled_from((1, 2, 8, 11)), st.sampled_from((0, 1, 3))), seed=seeds)
def test_slices_at_any_element_give_the_same_bits(
    port: CupyBackend, kind: tuple[str, int, int], margins: tuple[int, int], seed: int
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind), (20, 0), (1, 3), seed).filled()
        out = this.run(*margins)
        assert_same_bits(out.read(), this.run().read(), "attend between other columns")
        out.assert_untouched_around("attend")


@pytest.mark.parametrize("kind", [kind for kind in EXACT if kind[1] != 16], ids=str)
def test_unaligned_keys_leave_the_same_records(port: CupyBackend, kind: tuple[str, int, int]) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind), (0, 0), (9, 1), seed=2)
        for part in (*this.k, *this.v):
            part[0] = np.where(part[0] < 0, np.float16(-0.0), np.float16(0.0))  # either may be met first
        this.filled()
        other = CacheBench(bench, this.layout, this.new)
        k, v = (other.place(np.concatenate(part), 1, 2).array for part in (this.k, this.v))
        port.append(other.rows(), port.segments(this.past, this.new), k, v)
        for row in range(2):
            assert_same_bits(other.records[row].read(), this.cache.records[row].read(), f"records of row {row}")


@pytest.mark.usefixtures("apart")
def test_rows_whose_partial_sums_do_not_fit_at_once_take_several_launches(
    port: CupyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(("int4", 64, 64), heads=5), (300, 10, 270, 600, 3), (1, 1, 1, 1, 1), 4).filled()
        whole = this.run().read()
        monkeypatch.setattr(this.cache.rows().kernels, "items_at_once", 4)
        before = launched(port, "attend_decode")
        assert_same_bits(this.run().read(), whole, "attend in pieces")
        assert launched(port, "attend_decode") == before + 3  # of 2 + 1, 2, and 3 + 1 splits
        assert not counters(port).any()


@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_no_bit_depends_on_how_many_warps_a_head_has_nor_on_how_its_records_come(
    port: CupyBackend, newer: CupyBackend, kind: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    past = (37, 530)
    found: list[Values] = []
    for on, (role, whole) in [(one, way) for one in (port, newer) for way in ways(one, kind)]:
        choose(monkeypatch, role, whole)
        with Bench(on) as bench:
            this = Pass(bench, layout_of(kind, heads=5), past, [1] * len(past), seed=5).filled()
            found.append(this.run().read())
            this.check(found[-1])
    for other in found[1:]:
        assert_same_bits(other, found[0], "attend with one warp a head, or records copied beside the arithmetic")


@pytest.mark.parametrize("role", ["many", "few"])
@pytest.mark.parametrize("kind", [EXACT[1], EXACT[6]], ids=str)
def test_splits_of_more_than_a_segment_are_as_good(
    port: CupyBackend, kind: tuple[str, int, int], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, role, False)
    monkeypatch.setattr(segments, "MOST_SPLITS", 2)
    port.keep_rows_apart(False)
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind, heads=1), (800, 20, 560), (1, 1, 1), seed=9).filled()
        assert port.segments(this.past, this.new).item_count == 5  # of 32 and 19 steps, of 2, and of 32 and 4
        this.check(this.run().read())
    port.keep_rows_apart(True)


def test_a_long_row_has_a_bounded_number_of_splits_or_splits_of_one_length(port: CupyBackend, apart: bool) -> None:
    for past in (0, 15, 16, 255, 256, 511, 4095, 4096, 20_000, 1_000_000):
        splits = past // SEGMENT_KEYS + 1
        count = port.segments([past], [1]).item_count
        assert count == splits if apart else count <= min(MOST_SPLITS, splits)


def test_a_row_of_more_splits_than_there_is_room_for_is_a_tile_and_keeps_its_bits(
    port: CupyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(("int4", 64, 64)), (800, 10), (1, 1), 4).filled()
        split = this.run().read()
        monkeypatch.setattr(this.cache.rows().kernels, "items_at_once", 3)
        before = launched(port, "attend_decode")
        assert_same_bits(this.run().read(), split, "attend with a tile for every row")
        assert launched(port, "attend_decode") == before


@pytest.mark.parametrize("kind", [*EXACT, LOOSE[0], LOOSE[3]], ids=str)
def test_a_token_has_the_same_bits_alone_and_in_any_piece_of_a_prompt(
    port: CupyBackend, kind: tuple[str, int, int]
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind, heads=1), (0,), (517,), seed=6).filled()
        (q,) = this.q
        (whole,) = this.cache.attend([q], [0], this.scale)
        for first, last in PIECES:
            (found,) = this.cache.attend([q[first:last]], [first], this.scale)
            assert_same_bits(found, whole[first:last], f"tokens {first} to {last} of a prompt of 517")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("of", ["k", "v", "q"])
@pytest.mark.parametrize("kind", [EXACT[1], EXACT[6], LOOSE[0], LOOSE[3]], ids=str)
@pytest.mark.usefixtures("apart")
def test_what_is_not_finite_reaches_the_result(
    port: CupyBackend, kind: tuple[str, int, int], of: str, bad: float
) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind), (30, 0), (1, 20), seed=8)
        for q, part in zip(this.q, getattr(this, of), strict=True):
            # The last token of each row, in the first and the last head. A score of minus infinity is a score: against
            # keys that are infinite, queries have their sign.
            q[-1, [1, -1]] = np.copysign(1, bad)
            part[-1, [1, -1]] = bad
        this.filled()
        for part in np.split(this.run().read(), np.cumsum(this.new)[:-1]):
            finite = np.isfinite(part[-1].astype(np.float32).reshape(3, -1)).all(1)
            assert finite.tolist() == [False, True, False]


@pytest.mark.parametrize(("past", "new"), [(40, 1), (0, 80)], ids=str)
@pytest.mark.usefixtures("apart")
def test_a_score_of_minus_infinity_weighs_nothing(port: CupyBackend, past: int, new: int) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(EXACT[1], heads=1), [past], [new], seed=3)
        seen = (past + new) // 16 * 16 - 16  # the first keys, whole steps of them, are out of every query's reach
        this.k[0][:seen, 0], this.q[0][:, 0] = -np.inf, 1
        if new > 1:
            this.q[0][seen + 3, 0] = -1  # but of this one: its score is infinite
        found = this.filled().run().read()[seen - past if new > 1 else 0 :]
        queries, keys, values = (
            exact(part[0][-count:].reshape(count, 1, -1))
            for part, count in ((this.q, len(found)), (this.k, past + new - seen), (this.v, past + new - seen))
        )
        before = past + new - seen - len(found)
        expected = reference.attend(queries.values, keys.values, values.values, before, this.scale)
        bound = attention_bound(queries, keys, values, before, this.scale, bench.arithmetic)
        fit = np.arange(len(found)) != (3 if new > 1 else -1)
        assert_within(found[fit], expected[fit, 0], bound[fit, 0], "attend after keys that nobody sees")
        assert np.isnan(found[~fit]).all()


def test_keys_after_a_token_do_not_change_the_sign_of_its_zeros(port: CupyBackend) -> None:
    with Bench(port) as bench:
        this = Pass(bench, layout_of(EXACT[1], heads=1), (0,), (20,), seed=3, scale=1.0)
        for part in (this.k[0], this.v[0], this.q[0]):
            part[...] = 0
        # The first keys' values shrink to -0 when key 16 comes, whose own are -0; the values after it are positive.
        this.q[0][:, 0], this.k[0][:16, 0], this.v[0][:16], this.v[0][16] = 16, -16, -1e-7, -0.0
        this.v[0][17:] = 1
        (whole,) = this.filled().cache.attend(this.q, [0], this.scale)
        (alone,) = this.cache.attend([this.q[0][16:17]], [16], this.scale)
        assert not alone.any()
        assert np.signbit(alone[0]).tolist() == np.signbit(whole[16]).tolist()


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("kind", [EXACT[3], EXACT[4], EXACT[6], EXACT[7], EXACT[9], LOOSE[3]], ids=str)
@pytest.mark.parametrize("device", ["port", "newer"])
def test_a_prefix_of_any_number_of_chunks_is_as_good_as_a_copy(
    request: pytest.FixtureRequest, device: str, kind: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port: CupyBackend = request.getfixturevalue(device)
    shared, past, new = (256, 64, 0, 192, 128), (280, 64, 30, 205, 511), (1, 1, 1, 20, 3)
    which = slice(len(shared))  # the last row is not in the pass, and has what the others begin with
    with Bench(port) as bench:
        this = Pass(bench, layout_of(kind, heads=1), (*past, 0), (*new, 256), seed=7)
        for part in (this.k, this.v):
            part[which] = [np.concatenate((part[-1][:of], row[of:])) for row, of in zip(part, shared, strict=False)]
        needed = this.filled().run(which=which).read()
        named = [(len(shared), of) if of else None for of in (*shared, 0)]
        this.cache = CacheBench(bench, this.layout, [*map(len, this.k)], prefixes=named)
        k, v = ([row[of:] for row, of in zip(part, (*shared, 0), strict=True)] for part in (this.k, this.v))
        this.cache.append(k, v, (*shared, 0))
        assert_same_bits(this.run(which=which).read(), needed, "rows that share a prefix")
        for role, whole in ways(port, kind) if kind in EXACT else ():
            choose(monkeypatch, role, whole)
            assert_same_bits(this.run(which=which).read(), needed, f"rows that share a prefix, {role}, {whole}")


@pytest.mark.parametrize(("tokens", "offset", "what"), [(63, 0, "multiple of 64"), (64, 8, "multiples of 16")])
def test_a_prefix_that_no_kernel_reads_is_an_error(port: CupyBackend, tokens: int, offset: int, what: str) -> None:
    layout = layout_of(EXACT[0])
    with Bench(port) as bench:
        buffer = bench.buffer("device", 100 * layout.record_bytes)
        own, before = (port.view(buffer, of, (64 * layout.record_bytes,), "uint8") for of in (0, offset))
        with pytest.raises(ValueError, match=what):
            port.cache_rows([own], layout, [(before, tokens)])


def test_layers_share_what_was_uploaded(port: CupyBackend) -> None:
    layout = layout_of(("int4", 16, 16))
    with Bench(port) as bench:
        buffers = [bench.buffer("device", 40 * layout.record_bytes) for _ in range(2)]
        views = [
            [port.view(buffer, place * layout.record_bytes, (4 * layout.record_bytes,), "uint8") for place in (0, 9, 4)]
            for buffer in buffers
        ]
        first, second = (port.cache_rows(rows, layout) for rows in views)
        assert first.starts == second.starts
        assert first.records != second.records
        assert port.cache_rows(views[0][:2], layout).starts != first.starts


@pytest.mark.parametrize(
    "layout",
    [RecordLayout(1, 257, "float16"), RecordLayout(1, 8, "float32"), RecordLayout(2000, 128, "float16")],
    ids=str,
)
def test_a_layout_that_no_kernel_serves_is_refused_in_one_line(port: CupyBackend, layout: RecordLayout) -> None:
    with Bench(port) as bench:
        records = bench.array(np.zeros(layout.record_bytes, np.uint8))
        with pytest.raises(PolicyError) as refused:
            port.cache_rows([records], layout)
        assert "\n" not in str(refused.value)
