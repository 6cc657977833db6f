"""Clauses on rows of tables and on matrix products; a clause is `clause(backend, data)`."""

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import Array, Backend
from flexref.check import laws
from flexref.check.tolerances import Values, assert_within
from flexref.testing.bench import Bench, Guarded, assert_same_bits, assert_shape
from flexref.testing.strategies import arrays, numbers, seeds

FORMS = ("float32", "float16", "int4 float16", "int4 float32", "int8 float16", "int8 float32")
"""How a file may hold a matrix: dense, or in groups of 4-bit or 8-bit codes whose scales have the file's type."""

TABLE_DTYPES = ("float32", "float16")

MODERATE = ("normal", "offset", "constant", "tiny", "zero")
"""Kinds of numbers whose products stay within float16's range."""

tokens = st.one_of(st.integers(1, 9), st.sampled_from((1, 3, 16, 65, 130)))
"""Few, as in decode, or more than the tile of a kernel, as in a prefill."""

widths = st.sampled_from((1, 3, 8, 16, 31, 64, 65, 130, 260))
groups = st.sampled_from((4, 7, 16, 64))
usual_inputs, usual_groups = st.sampled_from((256, 512, 1536)), st.sampled_from((32, 64, 128))
usual_tokens = st.sampled_from((16, 1, 9, 33, 64, 65, 130))
"""As models have them: a port may have kernels for these alone, which read the longest ones piece by piece."""

FEW_TOKENS, FEW_OUTPUTS, MANY_INPUTS = 9, 65, 1024
"""With more inputs there are so few tokens and outputs at most: such products stay cheap."""

MANY_TOKENS, MANY_OUTPUTS = 130, 260
"""With as many inputs as models have: threads share the work, and more blocks of a device than one take a row."""

margins = st.sampled_from((0, 0, 3, 8))


def row_operators_keep_their_shapes(backend: Backend, data: st.DataObject) -> None:
    """`gather` returns its `out`, `add_rows` its `x`: (T, E) for any number of tokens."""
    with Bench(backend) as bench:
        count, width, rows = data.draw(tokens), data.draw(widths), data.draw(st.integers(1, 20))
        table = bench.array(np.zeros((rows, width), bench.dtype))
        ids = backend.upload(np.zeros(count, np.int32))
        out = bench.results((count, width)).array
        assert_shape(backend.gather(table, ids, 0, out), (count, width), "gather")
        assert_shape(backend.add_rows(out, table, ids), (count, width), "add_rows")


def products_have_their_shapes(backend: Backend, data: st.DataObject) -> None:
    """`linear` gives (T, O) for every form of weights, with and without bias, `out`, `add`; `expand` gives (O, I)."""
    with Bench(backend) as bench:
        if data.draw(st.booleans()):
            bench.workspace()
        count, inputs, outputs = data.draw(tokens), data.draw(widths), data.draw(widths)
        form = data.draw(st.sampled_from(FORMS))
        w, _ = bench.matrix(np.ones((outputs, inputs), np.float32), form, data.draw(groups))
        assert_shape(w, (outputs, inputs), f"weights as {form}")  # type: ignore[arg-type]
        b = bench.array(np.zeros(outputs, bench.dtype)) if data.draw(st.booleans()) else None
        x = bench.array(np.ones((count, inputs), bench.dtype))
        assert_shape(backend.linear(x, w, b), (count, outputs), "linear")
        out = bench.array(np.zeros((count, outputs), bench.dtype))
        assert_shape(backend.linear(x, w, b, out=out), (count, outputs), "linear with out")
        assert_shape(backend.linear(x, w, b, out=out, add=True), (count, outputs), "linear with add")
        full = bench.array(np.zeros((outputs, inputs), bench.dtype))
        assert_shape(backend.expand(w, full), (outputs, inputs), "expand")


def gather_takes_the_named_rows(backend: Backend, data: st.DataObject) -> None:
    """out[t] = table[ids[t] - first] exactly, converted to the type of `out`; other rows of `out` stay as they are."""
    with Bench(backend) as bench:
        count, width, rows = data.draw(tokens), data.draw(widths), data.draw(st.integers(1, 20))
        first = data.draw(st.integers(0, 30))
        dtype = data.draw(st.sampled_from(TABLE_DTYPES))
        table = data.draw(arrays((rows, width), dtype))
        out_dtype = data.draw(st.sampled_from((dtype, bench.dtype)))
        before = data.draw(arrays((count, width), out_dtype, ("normal",)))
        nearby = st.integers(max(0, first - 3), first + rows + 3)
        ids = np.array(data.draw(st.lists(nearby, min_size=count, max_size=count)), np.int32)
        out = bench.guarded(before, data.draw(margins), data.draw(margins))
        backend.gather(bench.array(table), backend.upload(ids), first, out.array)
        expected = before.copy()
        here = (ids >= first) & (ids < first + rows)
        expected[here] = table[ids[here] - first].astype(out_dtype)
        found = bench.read(out.array)
        differs = (found != expected).any(-1) if found.shape == expected.shape else np.ones(1, np.bool_)
        token = int(differs.argmax())
        note = f"; token {token} has the id {ids[token]}, the table the rows {first} to {first + rows - 1}"
        assert_same_bits(found, expected, "gather", note)
        out.assert_untouched_around("gather")


def gather_tile_by_tile_is_one_gather(backend: Backend, data: st.DataObject) -> None:
    """A table cut into tiles, gathered tile by tile into one `out`, gives what one gather of the whole table gives."""
    with Bench(backend) as bench:
        count, width, rows = data.draw(tokens), data.draw(widths), data.draw(st.integers(2, 40))
        table = data.draw(arrays((rows, width), data.draw(st.sampled_from(TABLE_DTYPES))))
        ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)), np.int32)
        placed, device_ids = bench.array(table), backend.upload(ids)
        whole, tiled = bench.results((count, width)).array, bench.results((count, width)).array
        backend.gather(placed, device_ids, 0, whole)
        step = data.draw(st.integers(1, rows))
        for first in data.draw(st.permutations(range(0, rows, step))):
            backend.gather(placed[first : min(rows, first + step)], device_ids, first, tiled)
        assert_same_bits(bench.read(tiled), bench.read(whole), f"gather in tiles of {step} rows")
        assert_same_bits(bench.read(whole), table[ids].astype(bench.dtype), "gather of a whole table")


def add_rows_adds_the_named_rows(backend: Backend, data: st.DataObject) -> None:
    """x[t] += table[ids[t]] in place, within one rounding of each operand and of the sum; ids may repeat."""
    with Bench(backend) as bench:
        count, width, rows = data.draw(tokens), data.draw(widths), data.draw(st.integers(1, 20))
        values = data.draw(arrays((count, width), bench.dtype, MODERATE))
        rows_values = data.draw(arrays((rows, width), data.draw(st.sampled_from(TABLE_DTYPES)), MODERATE))
        ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)), np.int32)
        x = bench.guarded(values, data.draw(margins), data.draw(margins))
        backend.add_rows(x.array, bench.array(rows_values), backend.upload(ids))
        expected, bound = laws.add_rows(values, rows_values[ids], bench.arithmetic)
        assert_within(bench.read(x.array), expected, bound, "add_rows", (rows, width))
        x.assert_untouched_around("add_rows")


class _Product:
    """One drawn product: its operands on the port, and its value with bound."""

    def __init__(self, bench: Bench, data: st.DataObject, forms: tuple[str, ...] = FORMS) -> None:
        size = data.draw(st.sampled_from(("any", "any", "any", "usual", "usual", "many")))
        usual = size != "any"
        count, outputs = (
            (MANY_TOKENS, MANY_OUTPUTS)
            if size == "many"
            else (data.draw(usual_tokens if usual else tokens), data.draw(widths))
        )
        inputs, self.group_size = (
            data.draw(usual_inputs if usual else widths),
            data.draw(usual_groups if usual else groups),
        )
        if inputs > MANY_INPUTS:
            count, outputs = min(count, FEW_TOKENS), min(outputs, FEW_OUTPUTS)
        self.bench, self.shape = bench, (count, outputs)
        self.form = data.draw(st.sampled_from(forms))
        self.weights = data.draw(arrays((outputs, inputs), kinds=("normal", "offset", "tiny")))
        self.w, self.operand = bench.matrix(self.weights, self.form, self.group_size)
        self.values = data.draw(arrays((count, inputs), bench.dtype, ("normal", "tiny", "zero")))
        self.x = bench.guarded(self.values, data.draw(margins), data.draw(margins)).array
        bias_dtype = data.draw(st.sampled_from(TABLE_DTYPES))
        biased = size == "many" or data.draw(st.booleans())
        self.bias = numbers((outputs,), bias_dtype, "normal", data.draw(seeds)) if biased else None
        self.b = None if self.bias is None else bench.array(self.bias)

    def expected(self, base: Values | None = None) -> tuple[Values, Values]:
        """(value, bound) of the product, added to `base`."""
        return laws.linear(self.values, self.operand, self.bias, base, self.bench.arithmetic)

    def check(self, y: Array, base: Values | None = None) -> None:
        """Raise `AssertionError` unless y is the product, added to `base`."""
        operands = f"x {self.values.shape}, weights {self.weights.shape} as {self.form}"
        what = f"linear of {operands}{'' if base is None else ', added'}"
        assert_within(self.bench.read(y), *self.expected(base), what)


def linear_is_the_product(backend: Backend, data: st.DataObject) -> None:
    """x w^T + b within the bound of an inner product, weights in every form, `x` and `out` slices of wider arrays.

    Whether rows have bits of their own or not.
    """
    with Bench(backend) as bench:
        if data.draw(st.booleans()):
            bench.workspace()
        bench.keep_rows_apart(data.draw(st.booleans()))
        product = _Product(bench, data)
        fresh = backend.linear(product.x, product.w, product.b)
        product.check(fresh)
        assert bench.read(fresh).dtype == bench.dtype, f"linear gives {bench.read(fresh).dtype}, needed {bench.dtype}"
        out = bench.results(product.shape, data.draw(margins), data.draw(margins))
        backend.linear(product.x, product.w, product.b, out=out.array)
        product.check(out.array)
        out.assert_untouched_around("linear")


def linear_adds_to_its_result(backend: Backend, data: st.DataObject) -> None:
    """With `add`, x w^T + b is added to what `out` holds, a slice of a wider array or not, rows kept apart or not."""
    with Bench(backend) as bench:
        bench.keep_rows_apart(data.draw(st.booleans()))
        product = _Product(bench, data)
        base = data.draw(arrays(product.shape, bench.dtype, MODERATE))
        out = bench.guarded(base, data.draw(margins), data.draw(margins))
        backend.linear(product.x, product.w, product.b, out=out.array, add=True)
        product.check(out.array, base)
        out.assert_untouched_around("linear with add")


def expand_is_the_matrix(backend: Backend, data: st.DataObject) -> None:
    """`expand` gives every weight in the compute type: exactly where that is wide enough, else within its roundings.

    A group's weight is code * scale + zero, however the file's scheme found these: how near that is to the weight of
    the checkpoint is the storage's law, not a port's.
    """
    with Bench(backend) as bench:
        product = _Product(bench, data)
        out = bench.results(product.weights.shape)
        found = bench.read(backend.expand(product.w, out.array))
        what = f"expand of weights as {product.form}"
        assert_within(found, product.operand.values, product.operand.error, what, product.weights.shape)
        assert found.dtype == bench.dtype, f"expand gives {found.dtype}, needed {bench.dtype}"
        out.assert_untouched_around("expand")


def linear_of_expanded_weights_has_the_same_bits(backend: Backend, data: st.DataObject) -> None:
    """For more than `caps.fused_rows` tokens `linear(x, expand(w))` has the bits of `linear(x, w)`, added or not.

    So one expansion of a layer may serve all groups of a block, and the result does not depend on whether it did.
    """
    with Bench(backend) as bench:
        bench.keep_rows_apart(data.draw(st.booleans()))
        inputs, outputs = data.draw(widths), data.draw(st.sampled_from((1, 5, 64, 100, 200)))
        count = backend.caps.fused_rows + data.draw(tokens)
        form = data.draw(st.sampled_from(FORMS))
        w, _ = bench.matrix(data.draw(arrays((outputs, inputs), kinds=("normal",))), form, data.draw(groups))
        x = bench.guarded(data.draw(arrays((count, inputs), bench.dtype, ("normal",))), data.draw(margins)).array
        bias = numbers((outputs,), bench.dtype, "normal", data.draw(seeds))
        b = bench.array(bias) if data.draw(st.booleans()) else None
        full = backend.expand(w, bench.results((outputs, inputs)).array)
        base = data.draw(arrays((count, outputs), bench.dtype, ("normal",)))
        for add in (False, True):
            direct, expanded = (
                bench.read(backend.linear(x, matrix, b, out=bench.array(base), add=add)) for matrix in (w, full)
            )
            assert_same_bits(expanded, direct, f"linear of expanded weights ({form}), add={add}")


def products_do_not_depend_on_other_rows(backend: Backend, data: st.DataObject) -> None:
    """A row's product with other rows beside it differs from its product alone by no more than the bound."""
    with Bench(backend) as bench:
        product = _Product(bench, data)
        value, bound = product.expected()
        for row in range(0, product.shape[0], max(1, product.shape[0] // 4)):
            alone = backend.linear(product.x[row : row + 1], product.w, product.b)
            assert_within(bench.read(alone), value[row : row + 1], bound[row : row + 1], f"linear of row {row} alone")


def a_row_of_a_product_is_its_own(backend: Backend, data: st.DataObject) -> None:
    """A row's product has the same bits alone and in any company: other rows, any number of them, in any order.

    Added to a result or not, for every form of weights.
    """
    backend.keep_rows_apart(True)
    with Bench(backend) as bench:
        product = _Product(bench, data)
        base = data.draw(arrays(product.shape, bench.dtype, MODERATE))
        company = data.draw(st.lists(st.integers(0, product.shape[0] - 1), min_size=1, max_size=40))
        for add in (False, True):
            first = bench.array(base)
            together = bench.read(backend.linear(product.x, product.w, product.b, out=first, add=add))
            for rows in (company, company[:1]):
                x, out = bench.array(product.values[rows]), bench.array(base[rows])
                found = bench.read(backend.linear(x, product.w, product.b, out=out, add=add))
                what = f"linear ({product.form}), add={add}, rows {rows} of {product.shape[0]}"
                assert_same_bits(found, together[rows], what)


def products_repeat_their_bits(backend: Backend, data: st.DataObject) -> None:
    """The same call on the same operands gives the same bits, wherever its result lies."""
    with Bench(backend) as bench:
        product = _Product(bench, data)
        first = bench.read(backend.linear(product.x, product.w, product.b))
        backend.linear(product.x, product.w, product.b)
        bench.workspace()
        backend.empty((3,), "float32")
        again = bench.read(backend.linear(product.x, product.w, product.b))
        assert_same_bits(again, first, f"linear, called again ({product.form})")
        out: Guarded = bench.results(product.shape, data.draw(margins), data.draw(margins))
        elsewhere = bench.read(backend.linear(product.x, product.w, product.b, out=out.array))
        assert_same_bits(elsewhere, first, f"linear into a slice ({product.form})")
