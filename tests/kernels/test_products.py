"""The CuPy port's matrix products on emulated devices: the contract's clauses, and shapes that take its fast paths."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from emulated_cuda import MOST_SHARED_BYTES, EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.device import COUNTERS_BYTES
from flexref_cupy.driver.variants import FEW_GROUPS, VARIANTS
from flexref_cupy.memory import Tensor
from flexref_cupy.operators import few_tokens, products
from flexref_cupy.operators.few_tokens import FewTokens
from flexref_cupy.operators.products import DENSE_ROWS, IN_ORDER_CAPABILITY, Products
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.check import laws
from flexref.check.tolerances import Operand, Values, assert_within
from flexref.testing.bench import Bench, Guarded, assert_same_bits
from flexref.testing.clauses import products as clauses
from flexref.testing.contract import Clause, clause_name
from flexref.testing.strategies import numbers, seeds

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason="no C++ compiler to run the kernels of cupy on a CPU")

CLAUSES: tuple[Clause, ...] = (
    clauses.products_have_their_shapes,
    clauses.linear_is_the_product,
    clauses.linear_adds_to_its_result,
    clauses.expand_is_the_matrix,
    clauses.linear_of_expanded_weights_has_the_same_bits,
    clauses.products_do_not_depend_on_other_rows,
    clauses.products_repeat_their_bits,
)

MULTIPROCESSORS = (1, 3, 40)
"""Of the emulated devices: how many parts a fused product's inputs are cut into depends on it."""

LONG_CHUNKS = 18
"""More than the scales in shared memory are for, whatever the size of groups: their places are used again."""

DTYPES = ("float16", "float32")

tokens = st.sampled_from((1, 5, 8, 9, 17, 31, 64))
inputs = st.sampled_from((256, 512, 768))
outputs = st.sampled_from((1, 9, 128, 130, 300))
group_sizes = st.sampled_from((32, 64, 128))
forms = st.sampled_from(("int4 float16", "int8 float16", "float16"))
margins = st.sampled_from((0, 0, 3, 8))


class WatchedCuda(EmulatedCuda):
    """Remembers the operands of cuBLAS."""

    def __init__(self, multiprocessors: int, capability: tuple[int, int] = (8, 0)) -> None:
        super().__init__(capability=capability, multiprocessors=multiprocessors)
        self.multiplied: list[tuple[Any, ...]] = []
        self.multiplied_apart: list[tuple[Any, ...]] = []

    def multiply(self, shape: Any, x: Any, w: Any, out: Any, add: bool) -> None:
        self.multiplied.append((shape, x, w, out, add))
        super().multiply(shape, x, w, out, add)

    def multiply_apart(self, shape: Any, x: Any, w: Any, out: Any, add: bool) -> None:
        self.multiplied_apart.append((shape, x, w, out, add))
        super().multiply_apart(shape, x, w, out, add)


class AlwaysApart(CupyBackend):
    """Keeps rows apart whatever a clause says, so that all that it calls is seen with rows apart."""

    def keep_rows_apart(self, on: bool) -> None:
        super().keep_rows_apart(True)


class NeverApart(CupyBackend):
    """Keeps no rows apart, whatever a clause says or leaves."""

    def keep_rows_apart(self, on: bool) -> None:
        super().keep_rows_apart(False)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[int, CupyBackend]]:
    capabilities = zip(MULTIPROCESSORS, ((7, 5), (8, 0), (7, 5)), strict=True)
    made = {count: NeverApart(cuda=WatchedCuda(count, capability)) for count, capability in capabilities}
    for each in made.values():
        each.keep_rows_apart(False)
    yield made
    for port in made.values():
        port.close()


@pytest.fixture(scope="module")
def port(ports: dict[int, CupyBackend]) -> CupyBackend:
    return ports[3]


@pytest.fixture(scope="module", params=[(8, 0), IN_ORDER_CAPABILITY], ids=["expanding", "in-order"])
def apart(request: pytest.FixtureRequest) -> Iterator[CupyBackend]:
    """A port that gives every row its own bits, as every one does until it is told otherwise."""
    made = AlwaysApart(cuda=WatchedCuda(3, request.param))
    yield made
    made.close()


@pytest.fixture(scope="module")
def in_order() -> Iterator[dict[int, CupyBackend]]:
    """Devices of several sizes that multiply few tokens with the codes themselves, and give every row its own bits."""
    made = {count: CupyBackend(cuda=WatchedCuda(count, IN_ORDER_CAPABILITY)) for count in MULTIPROCESSORS}
    yield made
    for port in made.values():
        port.close()


def launched(port: CupyBackend, kernel: str) -> int:
    """How often a kernel was started."""
    return sum(count for (_, name), count in port.cuda.launches.items() if name == kernel)


@dataclass
class Case:
    """One drawn product for few tokens, of weights in a layout that linear_few.cu takes."""

    bench: Bench
    values: Values
    x: Tensor
    w: Matrix
    operand: Operand
    bias: Values | None
    b: Tensor | None
    out: Guarded
    base: Values
    add: bool

    @classmethod
    def draw(cls, bench: Bench, data: st.DataObject, x_margin: int = 8) -> "Case":
        """Draw one; `x` lies in a wider array, `x_margin` elements from its edges."""
        rows, width, form = data.draw(outputs), data.draw(inputs), data.draw(forms)
        count = data.draw(tokens.filter(lambda count: form.startswith("int") or count <= DENSE_ROWS))
        group_size, seed = data.draw(group_sizes), data.draw(seeds)
        w, operand = bench.matrix(numbers((rows, width), "float32", "normal", seed), form, group_size)
        values = numbers((count, width), "float16", "normal", seed + 1)
        margin = data.draw(st.sampled_from((0, x_margin)))
        x = bench.guarded(values, margin, margin).array
        bias_dtype = data.draw(st.sampled_from((None, *DTYPES)))
        bias = None if bias_dtype is None else numbers((rows,), bias_dtype, "normal", seed + 2)
        b = None if bias is None else bench.array(bias)
        base = numbers((count, rows), data.draw(st.sampled_from(DTYPES)), "normal", seed + 3)
        out = bench.guarded(base, data.draw(margins), data.draw(margins))
        return cls(bench, values, x, w, operand, bias, b, out, base, data.draw(st.booleans()))

    def check(self) -> None:
        """Raise `AssertionError` unless `out` holds the product."""
        base = self.base if self.add else None
        expected, bound = laws.linear(self.values, self.operand, self.bias, base, self.bench.arithmetic)
        what = f"product of {self.values.shape} and {self.w}"
        assert_within(self.out.read(), expected, bound, what)
        self.out.assert_untouched_around(what)


@pytest.mark.parametrize("clause", CLAUSES, ids=clause_name)
@given(data=st.data())
def test_products_keep_the_contract(port: CupyBackend, clause: Clause, data: st.DataObject) -> None:
    clause(port, data)


@pytest.mark.parametrize("clause", [*CLAUSES, clauses.a_row_of_a_product_is_its_own], ids=clause_name)
@given(data=st.data())
def test_products_with_rows_apart_keep_the_contract(apart: CupyBackend, clause: Clause, data: st.DataObject) -> None:
    clause(apart, data)
    assert not apart.cuda.multiplied
    assert launched(apart, "linear_few") == 0 or apart.cuda.capability >= IN_ORDER_CAPABILITY


@given(data=st.data())
def test_with_rows_apart_a_row_has_the_same_bits_for_any_number_of_tokens(
    apart: CupyBackend, data: st.DataObject
) -> None:
    with Bench(apart) as bench:
        case, most = Case.draw(bench, data), 130
        values = numbers((most, case.w.shape[1]), "float16", "normal", data.draw(seeds))
        base = numbers((most, case.w.shape[0]), case.base.dtype.name, "normal", data.draw(seeds))
        whole = bench.read(apart.linear(bench.array(values), case.w, case.b, out=bench.array(base), add=case.add))
        for count in (1, 2, 65):
            first = data.draw(st.integers(0, most - count))
            rows = slice(first, first + count)
            x = bench.guarded(values[rows], *((8, 8) if data.draw(st.booleans()) else (0, 0))).array
            found = bench.read(apart.linear(x, case.w, case.b, out=bench.array(base[rows]), add=case.add))
            assert_same_bits(found, whole[rows], f"{count} tokens from {first} on of {most}")


@given(data=st.data())
def test_few_tokens_with_rows_apart_are_multiplied_as_stored_and_have_the_bits_of_the_expanded_matrix(
    in_order: dict[int, CupyBackend], data: st.DataObject
) -> None:
    port = in_order[data.draw(st.sampled_from(MULTIPROCESSORS))]
    with Bench(port) as bench:
        case = Case.draw(bench, data)
        full = port.expand(case.w, bench.results(case.w.shape).array)
        before = launched(port, "linear_few"), len(port.cuda.multiplied_apart)
        port.linear(case.x, case.w, case.b, out=case.out.array, add=case.add)
        assert (launched(port, "linear_few"), len(port.cuda.multiplied_apart)) == (before[0] + 1, before[1])
        case.check()
        by_library = Products(port.device, fused_rows=0)
        by_library.rows_apart = True
        out = bench.array(case.base)
        by_library.linear(case.x, full, case.b, out, case.add)
        assert len(port.cuda.multiplied_apart) == before[1] + 1
        assert_same_bits(case.out.read(), bench.read(out), "a product with the weights as they are stored")


@pytest.mark.parametrize("count", [1, 17])
@pytest.mark.parametrize(("form", "group_size"), [("int4", 32), ("int4", 64), ("int4", 128), ("int8", 64)])
def test_scales_of_a_row_of_many_chunks_come_in_turns(
    in_order: dict[int, CupyBackend], form: str, group_size: int, count: int
) -> None:
    port, rows, width = in_order[40], 9, LONG_CHUNKS * few_tokens.CHUNK_INPUTS[int(form[3:])]
    with Bench(port) as bench:
        w, _ = bench.matrix(numbers((rows, width), "float32", "normal", 1), f"{form} float16", group_size)
        x = bench.array(numbers((count, width), "float16", "normal", 2))
        found = bench.read(port.linear(x, w, None))
        full = port.expand(w, bench.results((rows, width)).array)
        by_library = Products(port.device, fused_rows=0)
        by_library.rows_apart = True
        out = bench.results((count, rows)).array
        by_library.linear(x, full, None, out, False)
        assert_same_bits(found, bench.read(out), f"a product of {LONG_CHUNKS} chunks")


@given(data=st.data())
def test_few_tokens_are_multiplied_with_the_weights_as_they_are_stored(
    ports: dict[int, CupyBackend], data: st.DataObject
) -> None:
    port = ports[data.draw(st.sampled_from(MULTIPROCESSORS))]
    with Bench(port) as bench:
        case = Case.draw(bench, data)
        before = launched(port, "linear_few"), len(port.cuda.multiplied)
        port.linear(case.x, case.w, case.b, out=case.out.array, add=case.add)
        assert (launched(port, "linear_few"), len(port.cuda.multiplied)) == (before[0] + 1, before[1])
        case.check()
        counters = Tensor(port.device.scratch.counters, (COUNTERS_BYTES // 4,), "int32", COUNTERS_BYTES // 4)
        assert not port.download(counters).any()


@given(data=st.data())
def test_a_fused_product_multiplies_the_weights_that_expand_gives(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        case = Case.draw(bench, data)
        expanded = bench.read(port.expand(case.w, bench.results(case.w.shape).array))
        count, width = case.values.shape
        first = data.draw(st.integers(0, width - count))
        unit = np.eye(count, width, first, np.float16)
        found = bench.read(port.linear(bench.array(unit), case.w, None))
        assert_same_bits(
            found, np.ascontiguousarray(expanded[:, first : first + count].T), "a product with a unit matrix"
        )


@given(data=st.data())
def test_a_fused_product_has_the_same_bits_wherever_its_operands_lie(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        case = Case.draw(bench, data)
        port.linear(case.x, case.w, case.b, out=case.out.array, add=case.add)
        for before, after in ((0, 0), (3, 1), (16, 8)):
            x = bench.guarded(case.values, 8 * (before % 2), 8).array
            out = bench.guarded(case.base, before, after)
            port.linear(x, case.w, case.b, out=out.array, add=case.add)
            assert_same_bits(out.read(), case.out.read(), f"a product at columns {before} to -{after}")


@given(data=st.data())
def test_what_is_not_a_number_reaches_its_token_and_no_other(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        case = Case.draw(bench, data)
        token, place = (data.draw(st.integers(0, length - 1)) for length in case.values.shape)
        values = case.values.copy()
        values[token, place] = data.draw(st.sampled_from((np.nan, np.inf, -np.inf)))
        found = bench.read(port.linear(bench.array(values), case.w, case.b))
        assert not np.isfinite(found[token]).any()
        assert np.isfinite(np.delete(found, token, axis=0)).all()


@given(data=st.data())
def test_layouts_that_the_fused_product_does_not_take_are_expanded(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        case = Case.draw(bench, data, x_margin=4)
        assume(case.values.shape[0] > 1 and case.x.pitch != case.values.shape[1])
        before = launched(port, "linear_few")
        port.linear(case.x, case.w, case.b, out=case.out.array, add=case.add)
        assert launched(port, "linear_few") == before
        case.check()


@given(data=st.data())
def test_the_most_tokens_that_are_few_are_a_matter_of_the_port(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        case, count = Case.draw(bench, data), data.draw(st.sampled_from((129, 200)))
        values = numbers((count, case.w.shape[1]), "float16", "normal", data.draw(seeds))
        base = np.zeros((count, case.w.shape[0]), np.float16)
        case.values, case.base, case.out, case.add = values, base, bench.guarded(base), True
        before = launched(port, "linear_few")
        Products(port.device, fused_rows=200).linear(bench.array(values), case.w, case.b, case.out.array, True)
        assert launched(port, "linear_few") == before + isinstance(case.w, QuantizedMatrix)
        case.check()
        before = launched(port, "linear_few")
        Products(port.device, fused_rows=0).linear(case.x[:1], case.w, None, bench.array(base[:1]), False)
        assert launched(port, "linear_few") == before


@pytest.mark.parametrize(("layout", "kernels"), [("int4", "expand_"), ("int8", "expand_wide_")])
@given(data=st.data())
def test_weights_expand_to_the_same_bits_at_any_alignment(
    port: CupyBackend, layout: str, kernels: str, data: st.DataObject
) -> None:
    with Bench(port) as bench:
        rows, width, dtype = data.draw(outputs), data.draw(inputs), data.draw(st.sampled_from(DTYPES))
        values = numbers((rows, width), "float32", data.draw(st.sampled_from(("normal", "offset", "tiny"))), 0)
        w, operand = bench.matrix(values, f"{layout} {dtype}", data.draw(group_sizes))
        names = f"{kernels}groups", f"{kernels}bytes"
        fast, slow = bench.results((rows, width), 8, 8), bench.results((rows, width), 3, 4)
        before = [launched(port, name) for name in names]
        port.expand(w, fast.array)
        port.expand(w, slow.array)
        assert [launched(port, name) for name in names] == [count + 1 for count in before]
        assert_same_bits(slow.read(), fast.read(), "weights expanded byte by byte")
        assert_within(fast.read(), operand.values, operand.error, "weights expanded group by group")
        fast.assert_untouched_around("expand, group by group")
        slow.assert_untouched_around("expand, byte by byte")
        first = data.draw(st.integers(0, rows - 1))
        part = bench.results((rows, width))
        port._products.expand(w, part.array[first:], first, rows)
        assert_same_bits(part.read()[first:], fast.read()[first:], f"rows from {first} on expanded")


@given(data=st.data())
def test_codes_of_many_tokens_are_expanded_as_what_they_are(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        rows, width, count = data.draw(outputs), data.draw(inputs), data.draw(tokens)
        form, kernel = data.draw(st.sampled_from((("int8", "expand_wide_groups"), ("int4", "expand_groups"))))
        weights = numbers((rows, width), "float32", "normal", data.draw(seeds))
        w, operand = bench.matrix(weights, f"{form} float16", data.draw(group_sizes))
        values, out = numbers((count, width), "float16", "normal", 0), bench.results((count, rows))
        before = launched(port, "linear_few"), launched(port, kernel)
        Products(port.device, fused_rows=0).linear(bench.array(values), w, None, out.array, False)
        assert (launched(port, "linear_few"), launched(port, kernel)) == (before[0], before[1] + 1)
        assert_within(out.read(), *laws.linear(values, operand, None, None, bench.arithmetic), f"{form} weights")


@given(data=st.data())
def test_cublas_is_shown_one_layout_for_one_shape(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench:
        width, rows, count = (data.draw(st.sampled_from((1, 7, 8, 64, 65, 130))) for _ in range(3))
        values, w_values = np.ones((count, width), np.float16), np.ones((rows, width), np.float32)
        shown = set()
        for _ in range(4):
            w, _ = bench.matrix(w_values, data.draw(st.sampled_from(clauses.FORMS)), 4)
            x = bench.guarded(values, data.draw(margins), data.draw(margins)).array
            out = bench.results((count, rows), data.draw(margins), data.draw(margins)).array
            del port.cuda.multiplied[:]
            port.linear(x, w, None, out=out)
            ((shape, x_at, w_at, out_at, add),) = port.cuda.multiplied
            assert all(address % 256 == 0 for address in (x_at[0], w_at[0], out_at[0]))
            assert all(pitch % 8 == 0 for pitch in (x_at[1], w_at[1], out_at[1]))
            shown.add((shape, x_at[1], w_at[1], *out_at[1:], add))
        assert len(shown) == 1


@given(data=st.data())
def test_products_that_exceed_the_scratch_are_cut(port: CupyBackend, data: st.DataObject) -> None:
    with Bench(port) as bench, pytest.MonkeyPatch.context() as patch:
        width, rows, count = (
            40,
            data.draw(st.sampled_from((255, 256, 600, 1000))),
            data.draw(st.sampled_from((65, 130))),
        )
        patch.setattr(products, "WEIGHTS_BYTES", 2 * width * 300)
        patch.setattr(products, "PARTIALS_BYTES", 256 + 2 * (width + products.shown(rows)) * 50)
        w, operand = bench.matrix(numbers((rows, width), "float32", "normal", 1), "int4 float16", 16)
        values = numbers((count, width), "float16", "normal", 2)
        x = bench.guarded(values, data.draw(margins), data.draw(margins)).array
        base, add = numbers((count, rows), "float16", "normal", 3), data.draw(st.booleans())
        out = bench.guarded(base, data.draw(margins), data.draw(margins))
        full = port.expand(w, bench.results((rows, width)).array)
        direct = bench.guarded(base, *((3, 3) if out.array.pitch != rows else (0, 0)))
        port.linear(x, w, None, out=out.array, add=add)
        port.linear(x, full, None, out=direct.array, add=add)
        assert_same_bits(out.read(), direct.read(), "a product in pieces")
        expected, bound = laws.linear(values, operand, None, base if add else None, bench.arithmetic)
        assert_within(out.read(), expected, bound, "a product in pieces")
        out.assert_untouched_around("a product in pieces")


@given(rows=st.integers(1, 1 << 20), width=st.integers(1, 1 << 16))
@settings(max_examples=200)
def test_tiles_of_a_matrix_are_even_and_fit_the_scratch(rows: int, width: int) -> None:
    found = list(products.tiles(rows, width))
    assert found[0][0] == 0
    assert [first for first, _ in found[1:]] == [last for _, last in found[:-1]]
    assert found[-1][1] == rows
    sizes = [last - first for first, last in found]
    assert max(sizes) * 2 * products.shown(width) <= products.WEIGHTS_BYTES
    assert len(found) == 1 or max(sizes) % products.TILE_ROWS == 0
    assert rows * 2 * products.shown(width) > products.WEIGHTS_BYTES or len(found) == 1


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 144), st.integers(0, 64))
@settings(max_examples=200)
def test_a_product_is_cut_into_as_many_parts_as_keep_the_device_busy(
    blocks: int, chunks: int, multiprocessors: int, most: int
) -> None:
    parts = few_tokens.parts_for(blocks, chunks, multiprocessors, most)
    assert 1 <= parts <= max(1, min(chunks, most, few_tokens.MOST_PARTS))
    if most >= few_tokens.MOST_PARTS and chunks >= 8 and multiprocessors >= 2 * blocks:
        assert parts > 1


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (9, 0)])
def test_blocks_for_few_tokens_fit_every_device_and_are_compiled_for_it(capability: tuple[int, int]) -> None:
    for bits, groups in FEW_GROUPS.items():
        for group, count, each in product(groups, (1, 8, 9, 16, 17, 32, 33, 128), (1, 32, 33, 64, 65, 1000)):
            block = few_tokens.block_for(bits, count, each, capability)
            assert few_tokens.shared_bytes(block, bits, group) <= MOST_SHARED_BYTES[capability]
            assert {**block.macros, "BITS": bits, "GROUP": group} in VARIANTS["linear_few"]
            assert block.outputs % block.warp_outputs == block.tokens % (8 * block.token_warps) == 0


@pytest.mark.parametrize("room", sorted(few_tokens.TABLES))
def test_blocks_are_spread_over_the_multiprocessors_by_their_shared_memory(room: int) -> None:
    """A kernel may start while the one before it ends: its blocks must not crowd where that ended first."""
    for each in range(1, few_tokens.SPREAD_BLOCKS + 1):
        block_bytes = few_tokens.spread_bytes(each, room) + few_tokens.BLOCK_OWN_BYTES
        everything = room + few_tokens.BLOCK_OWN_BYTES
        assert each * block_bytes <= everything < (each + 1) * block_bytes
    assert few_tokens.spread_bytes(few_tokens.SPREAD_BLOCKS + 1, room) == 0


def test_blocks_are_spread_where_kernels_start_early(in_order: dict[int, CupyBackend], port: CupyBackend) -> None:
    for multiprocessors, device in in_order.items():
        launch = FewTokens(device.device)._launch(40 * 32, 256, 4, 64, 1, whole=True)
        each = -(-launch.outputs // multiprocessors)
        assert launch.shared_bytes >= few_tokens.spread_bytes(each, few_tokens.LARGE_BYTES)
    late = FewTokens(port.device)._launch(32, 256, 4, 64, 1, whole=True)
    assert late.shared_bytes == few_tokens.shared_bytes(late.block, 4, 64)


def test_one_kernel_serves_matrices_that_spread_its_blocks_otherwise(in_order: dict[int, CupyBackend]) -> None:
    """The shared memory that a kernel may use is what was asked for last: a matrix of many blocks asks for less."""
    device = in_order[40]
    with Bench(device) as bench:
        x = bench.array(np.ones((1, 256), np.float16))
        few, many = (
            bench.matrix(numbers((outputs, 256), "float32", "normal", outputs), "int4 float16", 64)[0]
            for outputs in (1600, 5000)
        )
        out = bench.array(np.zeros((1, 5000), np.float16))
        first = [bench.backend.download(device.linear(x, w, None, out=out[:, : w.shape[0]])) for w in (few, many)]
        again = [bench.backend.download(device.linear(x, w, None, out=out[:, : w.shape[0]])) for w in (few, many)]
    for one, other in zip(first, again, strict=True):
        assert_same_bits(one, other, "products of matrices in turn")


def test_weights_are_expanded_to_halves_alone(port: CupyBackend) -> None:
    with Bench(port) as bench:
        w, _ = bench.matrix(np.ones((4, 64), np.float32), "int4 float16", 64)
        out = bench.array(np.ones((4, 64), np.float32))
        for weights in (w, bench.array(np.ones((4, 64), np.float16))):
            with pytest.raises(TypeError, match="only float16"):
                port.expand(weights, out)
