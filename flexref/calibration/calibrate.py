"""Converts a model for 4-bit weights and caches as a sample of text asks for, layer by layer; it knows no format.

The sample runs through the layers that are converted already. So a layer is fitted to the inputs that it will have, and
only one layer's weights, what its search needs (the moments of its inputs and what is made of them: some ten times the
weights), and the hidden states of the sample are in memory at a time.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import POSITION_OFFSET, ModelSpec, TensorSpec
from flexref.backend.protocol import Array, Backend, Matrix, QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.calibration.cache_basis import AttentionMaps, rebased
from flexref.calibration.quant_calibrated import Inputs, Moments, quantize_calibrated
from flexref.errors import CheckpointError, PromptError
from flexref.model.cache import LayerCache
from flexref.model.opt import decoder_layer, embed
from flexref.model.weights import EmbedWeights, layer_weights
from flexref.storage.convert import Conversion, open_origin
from flexref.storage.origin import Plan, Rows, whole
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.weightfile import Progress
from flexref.storage.writer import WeightFileWriter
from flexref.text.tokenizer import Tokenizer

Numbers = npt.NDArray[Any]
Stored = Numbers | Quantized

SCHEME = "int4-calibrated"

MOST_TOKENS = 1 << 16
"""Tokens of a sample that are used: the built-in model gains nothing from twice as many."""

LEAST_TOKENS = 1 << 12
"""A sample of less says too little of most inputs: for the built-in model 4,096 tokens are worth half of 65,536."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A text of the kind that a model is for, and the tokenizer that reads it."""

    text: str
    tokenizer_json: bytes

    def runs(self, positions: int) -> list[list[int]]:
        """The runs of tokens as long as the positions allow, each begun as texts are; at most MOST_TOKENS.

        Of a longer text runs are taken evenly. Raises `PromptError` for a text of less than LEAST_TOKENS.
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
    sample: Sample,
    scheme: str,
    group_size: int,
    dtype: str,
    on_progress: Progress | None = None,
) -> Conversion:
    """`storage.convert.convert` for a sample of text: attention in the basis of `cache_basis`, whatever the scheme.

    With scheme `int4-calibrated` codes are those of `quant_calibrated`, and a bias takes up the mean of what its
    matrix's errors do to the sample. Raises `PromptError` if the text is too short, and what `convert` does.
    """
    origin = open_origin(source)
    runs = sample.runs(origin.spec.positions)
    writer = WeightFileWriter(out, origin.spec, scheme, group_size, dtype, sample.tokenizer_json)
    plan = origin.plan(writer.tensors)
    total, done = sum(rows.nbytes for parts in plan.values() for rows in parts), 0
    with writer:
        pass_ = SamplePass(origin.spec, plan, runs)
        for _, tensors in writer.header.stages():
            is_layer = tensors[0].name.startswith("layers/")
            stored = pass_.layer(tensors, scheme, group_size, dtype) if is_layer else {}
            for tensor in tensors:
                if tensor.name in stored:
                    writer.write(tensor.name, stored[tensor.name])
                else:
                    writer.write_slabs(tensor.name, _slabs(plan[tensor.name]))
                done += sum(rows.nbytes for rows in plan[tensor.name])
                if on_progress is not None:
                    on_progress(done, total)
    return Conversion(str(out), origin.spec, total, Path(out).stat().st_size, origin.unused(plan))


def _slabs(parts: Sequence[Rows]) -> Iterator[tuple[str, Numbers]]:
    for rows in parts:
        yield from rows.slabs()


class SamplePass:
    """The hidden states (S, E) of a sample's runs, before the layer that comes next."""

    def __init__(self, spec: ModelSpec, plan: Plan, runs: Sequence[Sequence[int]]) -> None:
        self._spec, self._plan = spec, plan
        self._port = create("numpy")
        longest = max(map(len, runs))
        self._layout = RecordLayout(spec.heads, spec.head_width, self._port.caps.compute_dtype)
        self._records = self._port.upload(np.zeros(longest * self._layout.record_bytes, np.uint8))
        self._states = self._embedded(runs)

    def _embedded(self, runs: Sequence[Sequence[int]]) -> list[Array]:
        project = self._plan.get("embed/project_in")
        weights = EmbedWeights(
            cast(Array, whole(self._plan["embed/positions"])), None if project is None else cast(Array, whole(project))
        )
        tables = [parts for name, parts in self._plan.items() if name.startswith("tokens/")]
        wanted, places = np.unique(np.concatenate([np.array(run) for run in runs]), return_inverse=True)
        rows = _rows_of([rows for parts in tables for rows in parts], wanted)
        states, first = [], 0
        for run in runs:
            x = self._port.empty((len(run), self._spec.width), "float32")
            ids = np.arange(POSITION_OFFSET, POSITION_OFFSET + len(run), dtype=np.int32)
            embed(self._port, weights, cast(Array, rows[places[first : first + len(run)]]), cast(Array, ids), x)
            states.append(x)
            first += len(run)
        return states

    def layer(self, tensors: Sequence[TensorSpec], scheme: str, group_size: int, dtype: str) -> dict[str, Stored]:
        """The tensors of the next layer for `scheme`: attention in its new basis; states go through them.

        With scheme `int4-calibrated` matrices are in groups, and biases moved; else all is dense.
        """
        place = int(tensors[0].name.split("/")[1])
        found: dict[str, Stored] = {tensor.name: _finite(self._plan[tensor.name]) for tensor in tensors}
        moments = self._moments(tensors, place, found)
        _rebase(found, moments, f"layers/{place:03d}/attention_", self._spec.heads)
        if scheme == SCHEME:
            for name, spread in moments.items():
                _quantize(found, name, spread, group_size, dtype)
        stored = {name: _operand(values) for name, values in found.items()}
        for x in self._states:
            self._run(self._port, stored, place, x)
        return found

    def _moments(self, tensors: Sequence[TensorSpec], place: int, found: Mapping[str, Stored]) -> dict[str, Moments]:
        """The moments of every matrix's inputs, by the matrix's name; states stay as they are."""
        dense = {name: cast(Matrix, values) for name, values in found.items()}
        watched = _Watched(self._port)
        for x in self._states:
            self._run(cast(Backend, watched), dense, place, self._port.upload(self._port.download(x)))
        names = [tensor.name for tensor in tensors if tensor.quantizable]
        return {name: watched.inputs[id(found[name])].moments(about_mean=_bias_of(name) in found) for name in names}

    def _run(self, port: Backend, tensors: Mapping[str, Matrix], layer: int, x: Array) -> None:
        """x (S, E) through a layer, in place."""
        rows = port.cache_rows([self._records], self._layout)
        cache = LayerCache(rows, port.segments([0], [x.shape[0]]), x.shape[0])
        decoder_layer(port, self._spec, layer_weights(tensors, layer), x, cache)


class _Watched:
    """A port whose products tell what they multiply; everything else is the port's own."""

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
    """A whole tensor in float32; `CheckpointError` if the sample could not run through it."""
    values = whole(parts)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{parts[0].name}: holds weights that are not finite")
    return values


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _rebase(found: dict[str, Stored], moments: dict[str, Moments], prefix: str, heads: int) -> None:
    """Put a layer's attention, and the moments of what its output matrix reads, into the basis of `cache_basis`."""
    qkv, out = f"{prefix}qkv/weight", f"{prefix}out/weight"
    names = (qkv, _bias_of(qkv), out, _bias_of(out))
    maps = AttentionMaps(*(cast(Any, found.get(name)) for name in names))
    new = rebased(maps, moments[qkv], heads)
    moments[out] = new.moments(moments[out])
    for name, values in zip(names, (new.maps.qkv, new.maps.qkv_bias, new.maps.out, new.maps.out_bias), strict=True):
        if values is not None:
            found[name] = values


def _quantize(found: dict[str, Stored], name: str, moments: Moments, group_size: int, dtype: str) -> None:
    """Put matrix `name` into groups for inputs of such moments; its bias takes up the mean of what errors do."""
    values, bias = cast(Numbers, found[name]), _bias_of(name)
    groups = quantize_calibrated(values, moments, group_size, np.dtype(dtype).newbyteorder("<"), name)
    found[name] = groups
    if bias in found:
        lost = (values - dequantize(groups)) @ moments.mean
        found[bias] = (cast(Numbers, found[bias]) + lost).astype(dtype)


def _operand(values: Stored) -> Matrix:
    if isinstance(values, Quantized):
        codes, scale, zero = (cast(Array, part) for part in (values.codes, values.scale, values.zero))
        return QuantizedMatrix(codes, scale, zero, values.width, values.group_size, values.bits)
    return cast(Array, values)
