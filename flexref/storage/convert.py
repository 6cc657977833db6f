"""Turns a Hugging Face folder into a weight file, a few rows at a time; it knows no format of either by itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from flexref.errors import CheckpointError
from flexref.spec import ModelSpec, TensorSpec
from flexref.storage.hf import HEAD, PREFIXES, TOKENS, Checkpoint, open_checkpoint
from flexref.storage.quant import Array
from flexref.storage.source import SourceTensor
from flexref.storage.weightfile import Progress
from flexref.storage.writer import WeightFileWriter, slab_rows

_LAYER_SOURCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention_norm": ("self_attn_layer_norm",),
        "attention_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": ("self_attn.out_proj",),
        "ffn_norm": ("final_layer_norm",),
        "ffn_up": ("fc1",),
        "ffn_down": ("fc2",),
    }
)
"""Which modules of a decoder layer make a unit of ours; the rows of several follow each other."""

_OTHER_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "embed/positions": "decoder.embed_positions.weight",
        "embed/project_in": "decoder.project_in.weight",
        "head/norm/weight": "decoder.final_layer_norm.weight",
        "head/norm/bias": "decoder.final_layer_norm.bias",
        "head/project_out": "decoder.project_out.weight",
    }
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did: bytes of the weights read, and the tensors of the folder that the model has no use for."""

    path: str
    spec: ModelSpec
    source_bytes: int
    file_bytes: int
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows `first` to `stop` of a tensor of the checkpoint."""

    source: SourceTensor
    first: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the checkpoint."""
        return self.source.nbytes * (self.stop - self.first) // self.source.shape[0]

    def slabs(self) -> Iterator[tuple[str, Array]]:
        """The rows a slab at a time, each with the name of its tensor."""
        step = slab_rows(self.source.shape)
        for first in range(self.first, self.stop, step):
            yield self.source.name, self.source.read_rows(first, min(first + step, self.stop))


def convert(
    folder: str | Path,
    out: str | Path,
    scheme: str = "int4",
    group_size: int = 64,
    dtype: str = "float16",
    tokenizer_json: bytes | None = None,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert the Hugging Face OPT folder `folder` to the weight file `out`.

    Peak memory is a few slabs of rows, whatever the model's size. The file appears whole or not at all. Raises
    `CheckpointError` for a folder that is no complete OPT checkpoint, `QuantizationError` for weights that cannot be
    quantized, `StorageError` where files cannot be read or written.
    """
    checkpoint = open_checkpoint(folder)
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, tied_head=_is_tied(checkpoint)))
    writer = WeightFileWriter(out, checkpoint.spec, scheme, group_size, dtype, tokenizer_json)
    plan = _plan(checkpoint, writer.tensors)
    total, done = sum(rows.nbytes for parts in plan.values() for rows in parts), 0

    def slabs(parts: list[_Rows]) -> Iterator[tuple[str, Array]]:
        nonlocal done
        for rows in parts:
            for what, slab in rows.slabs():
                yield what, slab
                done += slab.nbytes
                if on_progress is not None:
                    on_progress(done, total)

    with writer:
        for name, parts in plan.items():
            writer.write_slabs(name, slabs(parts))
    used = {rows.source.name for parts in plan.values() for rows in parts} | {f"{prefix}{HEAD}" for prefix in PREFIXES}
    ignored = tuple(sorted(name for name in checkpoint.tensors if name not in used))
    return Conversion(str(out), checkpoint.spec, total, Path(out).stat().st_size, ignored)


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether head and token embedding are one table: as configured, unless the checkpoint holds both and they differ.

    So `transformers` decides too. Files of either kind often hold both names for the same values.
    """
    tokens, head = checkpoint.find(TOKENS), checkpoint.find(HEAD)
    if tokens is None or head is None:
        return checkpoint.spec.tied_head
    if tokens.contents == head.contents:
        return True
    if tokens.shape != head.shape:
        return False
    step = slab_rows(tokens.shape)
    spans = ((first, min(first + step, tokens.shape[0])) for first in range(0, tokens.shape[0], step))
    return all(np.array_equal(tokens.read_rows(*span), head.read_rows(*span)) for span in spans)


def source_names(name: str) -> tuple[str, ...]:
    """The names in a checkpoint whose rows, one behind the other, make (the table of) our tensor `name`."""
    place = name.split("/")
    if place[0] == "layers":
        modules = _LAYER_SOURCES[place[2]]
        return tuple(f"decoder.layers.{int(place[1])}.{module}.{place[3]}" for module in modules)
    if place[0] == "tokens":
        return (TOKENS,)
    return (HEAD,) if name.startswith("head/table/") else (_OTHER_SOURCES[name],)


def _plan(checkpoint: Checkpoint, tensors: tuple[TensorSpec, ...]) -> dict[str, list[_Rows]]:
    """For each tensor of the file, in its order, the rows of the checkpoint that make it; everything must be there."""
    spec, plan, missing = checkpoint.spec, {}, []
    next_row = dict.fromkeys((TOKENS, HEAD), 0)
    for tensor in tensors:
        plan[tensor.name] = parts = list[_Rows]()
        names = source_names(tensor.name)
        for name in names:
            source = checkpoint.find(name)
            if source is None and name == TOKENS and spec.tied_head:
                source = checkpoint.find(HEAD)  # a tied table may stand under either name
            if source is None:
                missing.append(name)
                continue
            first = next_row.get(name, 0)
            stop = first + tensor.shape[0] // len(names)
            if name in next_row:
                next_row[name] = stop
            rows = spec.vocabulary if name in next_row else stop
            _check_shape(source, (rows, *tensor.shape[1:]))
            parts.append(_Rows(source, first, stop))
    if missing:
        raise CheckpointError(f"{checkpoint.folder} lacks {len(set(missing))} tensors, the first is {missing[0]}")
    return plan


def _check_shape(source: SourceTensor, needed: tuple[int, ...]) -> None:
    if source.shape != needed:
        raise CheckpointError(
            f"{source.path}: tensor {source.name} has shape {source.shape}, config.json asks for {needed}"
        )
