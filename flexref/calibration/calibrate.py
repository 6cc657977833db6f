"""Converts a model layer by layer, fitting 4-bit weights and caches to a sample of text; it knows no file format.

The sample's hidden states run through every layer after it is converted, so the next layer is fitted to the inputs that
it will really have. In memory at a time are the sample's hidden states, one layer's weights, and what its search needs:
the moments of its inputs and products of them, about ten times the weights.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role, program_of
from flexref.architecture.spec import POSITION_OFFSET
from flexref.architecture.stages import Stage, StageKind, TensorSpec, stages, token_tiles
from flexref.backend.protocol import Array, Backend, Matrix, QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.calibration.cache_basis import AttentionMaps, rebased
from flexref.calibration.quant_calibrated import Inputs, Moments, quantize_calibrated
from flexref.errors import CheckpointError, PromptError
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.stages import embed
from flexref.model.weights import by_role
from flexref.storage.convert import Conversion, open_origin
from flexref.storage.origin import Plan, Rows, whole
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.schema import FileHeader
from flexref.storage.weightfile import Progress
from flexref.storage.writer import WeightFileWriter
from flexref.text.tokenizer import Tokenizer

Numbers = npt.NDArray[Any]
Stored = Numbers | Quantized

SCHEME = "int4-calibrated"

MOST_TOKENS = 1 << 16
"""At most so many tokens of a sample are used: the built-in model gains nothing from twice as many."""

LEAST_TOKENS = 1 << 12
"""A shorter sample is refused: with the built-in model, 4,096 tokens gain half of what 65,536 do."""


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """A text like those that the model will read, and the bytes of its `tokenizer.json`."""

    text: str
    tokenizer_json: bytes

    def runs(self, positions: int) -> list[list[int]]:
        """The text's tokens in runs of at most `positions`, each with the tokens that begin every text.

        A text of more than MOST_TOKENS gives evenly spread runs. Raises `PromptError` below LEAST_TOKENS.
        """
        tokenizer = Tokenizer.from_json(self.tokenizer_json)
        begin = tokenizer.encode("")
        ids = tokenizer.encode(self.text)[len(begin) :]
        if len(ids) < LEAST_TOKENS:
            raise PromptError(f"the text to calibrate with has {len(ids)} tokens, needed at least {LEAST_TOKENS}")
        length = positions - len(begin)
        firsts = range(0, len(ids), length)
        some = np.linspace(0, len(firsts) - 1, min(len(firsts), max(1, MOST_TOKENS // length)))
        return [begin + ids[first : first + length] for first in (firsts[int(place)] for place in some)]


def convert_calibrated(
    source: str | Path,
    out: str | Path,
    sample: CalibrationSample,
    scheme: str,
    group_size: int,
    dtype: str,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert `source` to the weight file `out`, as `storage.convert.convert` does, fitted to a sample of text.

    With every scheme, attention is put into the basis of `cache_basis`. With `int4-calibrated`, `quant_calibrated`
    chooses the codes, and each bias is corrected by the mean error of its matrix's products on the sample.
    Raises `PromptError` for a text that is too short, and what `convert` raises.
    """
    origin = open_origin(source)
    runs = sample.runs(origin.spec.positions)
    writer = WeightFileWriter(out, origin.spec, scheme, group_size, dtype, sample.tokenizer_json)
    plan = origin.plan(writer.tensors)
    total, done = sum(rows.nbytes for parts in plan.values() for rows in parts), 0
    with writer:
        pass_ = SamplePass(writer.header, plan, runs)
        for stage in writer.header.stages():
            stored = pass_.layer(stage, scheme, group_size, dtype) if stage.kind is StageKind.LAYER else {}
            for tensor in stage.tensors:
                if tensor.name in stored:
                    writer.write(tensor.name, stored[tensor.name])
                else:
                    writer.write_slabs(tensor.name, _slabs(plan[tensor.name]))
                done += sum(rows.nbytes for rows in plan[tensor.name])
                if on_progress is not None:
                    on_progress(done, total)
    return Conversion(str(out), origin.spec, total, Path(out).stat().st_size, origin.unused(plan), writer.rounding)


def _slabs(parts: Sequence[Rows]) -> Iterator[tuple[str, Numbers]]:
    """The slabs of all parts of a tensor, with names for messages."""
    for rows in parts:
        yield from rows.slabs()


@dataclass(frozen=True, slots=True)
class Product:
    """The names of a projection's matrix, and of its bias if it has one."""

    matrix: str
    bias: str | None

    @classmethod
    def of(cls, unit: Sequence[TensorSpec]) -> "Product":
        """The names in a unit of a stage: a matrix, and maybe a bias."""
        matrix, *bias = (tensor.name for tensor in unit)
        return cls(matrix, bias[0] if bias else None)


class SamplePass:
    """Runs a sample through a model. It holds every run's hidden states (S, E) before the next layer."""

    def __init__(self, header: FileHeader, plan: Plan, runs: Sequence[Sequence[int]]) -> None:
        """`plan`: where the tensors of the file with this `header` come from. Raises `CheckpointError`."""
        spec = header.spec
        self._spec, self._program, self._plan = spec, program_of(spec), plan
        self._port = create("numpy")
        longest = max(map(len, runs))
        self._layout = RecordLayout(spec.heads, spec.head_width, self._port.caps.compute_dtype)
        self._records = self._port.upload(np.zeros(longest * self._layout.record_bytes, np.uint8))
        self._states = self._embedded(stages(spec, header.tile_rows)[0], token_tiles(spec, header.tile_rows), runs)

    def _embedded(self, stage: Stage, tiles: Sequence[TensorSpec], runs: Sequence[Sequence[int]]) -> list[Array]:
        dense = {tensor.name: cast(Matrix, _finite(self._plan[tensor.name])) for tensor in stage.tensors}
        weights = by_role(stage, dense)
        tables = [self._plan[tile.name] for tile in tiles]
        wanted, places = np.unique(np.concatenate([np.array(run) for run in runs]), return_inverse=True)
        rows = _rows_of([rows for parts in tables for rows in parts], wanted)
        if not np.isfinite(rows).all():
            raise CheckpointError(f"{tables[0][0].name}: holds weights that are not finite")
        states, first = [], 0
        for run in runs:
            x = self._port.empty((len(run), self._spec.width), "float32")
            ids = np.arange(POSITION_OFFSET, POSITION_OFFSET + len(run), dtype=np.int32)
            of_run = rows[places[first : first + len(run)]]
            embed(self._port, self._program.embed, weights, cast(Array, of_run), cast(Array, ids), x)
            states.append(x)
            first += len(run)
        return states

    def layer(self, stage: Stage, scheme: str, group_size: int, dtype: str) -> dict[str, Stored]:
        """Convert the next layer, and run the hidden states through it. Returns its tensors by name.

        Attention is in its new basis. With `int4-calibrated`, matrices are in groups and biases corrected; with any
        other scheme all is dense, and the writer quantizes. Raises `CheckpointError` where values are not finite.
        """
        found: dict[str, Stored] = {tensor.name: _finite(self._plan[tensor.name]) for tensor in stage.tensors}
        products = {unit[0].role: Product.of(unit) for unit in stage.units if unit[0].quantizable}
        moments = self._moments(stage, products.values(), found)
        _rebase(found, moments, (products[Role.QKV], products[Role.ATTENTION_OUT]), self._spec.heads)
        if scheme == SCHEME:
            for product in products.values():
                _quantize(found, product, moments[product], group_size, dtype)
        stored = {name: _operand(values) for name, values in found.items()}
        for x in self._states:
            self._run(self._port, stored, stage, x)
        return found

    def _moments(
        self, stage: Stage, products: Iterable[Product], found: Mapping[str, Stored]
    ) -> dict[Product, Moments]:
        """The moments of every product's inputs. The hidden states are not changed."""
        dense = {name: cast(Matrix, values) for name, values in found.items()}
        watched = _Watched(self._port)
        for x in self._states:
            self._run(cast(Backend, watched), dense, stage, self._port.upload(self._port.download(x)))
        return {
            product: watched.inputs[id(found[product.matrix])].moments(about_mean=product.bias is not None)
            for product in products
        }

    def _run(self, port: Backend, tensors: Mapping[str, Matrix], stage: Stage, x: Array) -> None:
        """Run x (S, E) through a layer in place. Raises `CheckpointError` where the result is not finite."""
        rows = port.cache_rows([self._records], self._layout)
        cache = LayerCache(rows, port.segments([0], [x.shape[0]]), x.shape[0])
        with np.errstate(all="ignore"):  # the result is checked below
            decoder_layer(port, self._program.layer, by_role(stage, tensors), x, cache)
        if not np.isfinite(self._port.download(x)).all():
            raise CheckpointError(f"{stage.name}: of the sample it makes values that are not finite")


class _Watched:
    """A port that gathers the inputs of every product, by its matrix; all other calls go to the port unchanged."""

    def __init__(self, port: Backend) -> None:
        self._port = port
        self.inputs: dict[int, Inputs] = defaultdict(Inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def linear(self, x: Array, w: Matrix, b: Array | None, *, out: Array | None = None, add: bool = False) -> Array:
        """See `Backend.linear`."""
        self.inputs[id(w)].add(self._port.download(x))
        return self._port.linear(x, w, b, out=out, add=add)


def _rows_of(parts: Sequence[Rows], wanted: Numbers) -> Numbers:
    """Rows `wanted` (N,), ascending, of a table (V, W), which is read by slabs: (N, W) in float32."""
    found, first = [], 0
    for rows in parts:
        for _, slab in rows.slabs():
            here = wanted[(wanted >= first) & (wanted < first + len(slab))] - first
            found.append(slab[here].astype(np.float32))
            first += len(slab)
    return np.concatenate(found)


def _finite(parts: Sequence[Rows]) -> Numbers:
    """A whole tensor in float32. Raises `CheckpointError` if a value is not finite."""
    values = whole(parts)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{parts[0].name}: holds weights that are not finite")
    return values


def _rebase(
    found: dict[str, Stored], moments: dict[Product, Moments], ends: tuple[Product, Product], heads: int
) -> None:
    """Put a layer's attention into the basis of `cache_basis`, and with it the moments of the output matrix's inputs.

    `ends`: the products before and after attention. `found` and `moments` are changed in place.
    """
    qkv, out = ends
    names = (qkv.matrix, qkv.bias, out.matrix, out.bias)
    maps = AttentionMaps(*(cast(Any, None if name is None else found[name]) for name in names))
    new = rebased(maps, moments[qkv], heads)
    moments[out] = new.moments(moments[out])
    for name, values in zip(names, (new.maps.qkv, new.maps.qkv_bias, new.maps.out, new.maps.out_bias), strict=True):
        if name is not None and values is not None:
            found[name] = values


def _quantize(found: dict[str, Stored], product: Product, moments: Moments, group_size: int, dtype: str) -> None:
    """Quantize a product's matrix for inputs of these moments, and add the mean error of its products to the bias."""
    name, bias = product.matrix, product.bias
    values = cast(Numbers, found[name])
    groups = quantize_calibrated(values, moments, group_size, np.dtype(dtype).newbyteorder("<"), name)
    found[name] = groups
    if bias is not None:
        lost = (values - dequantize(groups)) @ moments.mean
        found[bias] = (cast(Numbers, found[bias]) + lost).astype(dtype)


def _operand(values: Stored) -> Matrix:
    """A stored tensor as an operand of the numpy port."""
    if isinstance(values, Quantized):
        codes, scale, zero = (cast(Array, part) for part in (values.codes, values.scale, values.zero))
        return QuantizedMatrix(codes, scale, zero, values.width, values.group_size, values.bits)
    return cast(Array, values)
