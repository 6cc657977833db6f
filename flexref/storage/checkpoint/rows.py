"""Which tensors of a Hugging Face folder make which of a weight file, and the way to their rows; it writes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flexref.architecture.opt import HEAD, PREFIXES, TOKENS, source_names
from flexref.architecture.stages import TensorSpec
from flexref.errors import CheckpointError, how_many
from flexref.storage.checkpoint.folder import Checkpoint, open_checkpoint
from flexref.storage.checkpoint.source import SourceTensor
from flexref.storage.origin import Origin, Plan
from flexref.storage.quant import Array
from flexref.storage.writer import slab_rows


@dataclass(frozen=True, slots=True)
class CheckpointRows:
    """Rows `first` to `stop` of a tensor of the checkpoint."""

    source: SourceTensor
    first: int
    stop: int

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint."""
        return self.source.name

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the checkpoint."""
        return self.source.nbytes * (self.stop - self.first) // self.source.shape[0]

    def slabs(self) -> Iterator[tuple[str, Array]]:
        """The rows a slab at a time, each with the name of its tensor."""
        step = slab_rows(self.source.shape)
        for first in range(self.first, self.stop, step):
            yield self.source.name, self.source.read_rows(first, min(first + step, self.stop))


def checkpoint_origin(folder: str | Path) -> Origin:
    """The tensors of the Hugging Face folder `folder`; `CheckpointError` or `StorageError` says why it is none."""
    checkpoint = open_checkpoint(folder)
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, tied_head=_is_tied(checkpoint)))
    heads = {f"{prefix}{HEAD}" for prefix in PREFIXES}  # of use even where it is tied
    names = tuple(name for name in checkpoint.tensors if name not in heads)
    return Origin(checkpoint.spec, lambda tensors: _plan(checkpoint, tensors), names)


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


def _plan(checkpoint: Checkpoint, tensors: Sequence[TensorSpec]) -> Plan:
    """For each tensor of the file, in its order, the rows of the checkpoint that make it; everything must be there."""
    spec, missing = checkpoint.spec, list[str]()
    plan: dict[str, list[CheckpointRows]] = {}
    next_row = dict.fromkeys((TOKENS, HEAD), 0)
    for tensor in tensors:
        plan[tensor.name] = parts = list[CheckpointRows]()
        names = source_names(tensor)
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
            parts.append(CheckpointRows(source, first, stop))
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks {how_many(len(set(missing)), 'tensor')}, the first is {missing[0]}"
        )
    return plan


def _check_shape(source: SourceTensor, needed: tuple[int, ...]) -> None:
    if source.shape != needed:
        raise CheckpointError(
            f"{source.path}: tensor {source.name} has shape {source.shape}, config.json asks for {needed}"
        )
