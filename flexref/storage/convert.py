"""Makes a weight file from a Hugging Face folder or another weight file, some rows at a time; it knows no format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexref.architecture.spec import ModelSpec
from flexref.storage.checkpoint.rows import checkpoint_origin
from flexref.storage.file_rows import file_origin
from flexref.storage.names import DEMO, resolve
from flexref.storage.origin import Origin, Rows
from flexref.storage.quant import Array
from flexref.storage.rounding import Rounding
from flexref.storage.weightfile import Progress, read_layout
from flexref.storage.writer import WeightFileWriter


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did: bytes of the weights read, tensors of the folder that the model has no use for.

    `rounding`: what dense values lost on their way into a narrower type, None if nothing.
    """

    path: str
    spec: ModelSpec
    source_bytes: int
    file_bytes: int
    ignored: tuple[str, ...]
    rounding: Rounding | None


def open_origin(source: str | Path) -> Origin:
    """The dense tensors of a Hugging Face folder, or of a weight file of scheme none (`demo`: the built-in model).

    Raises `CheckpointError` for a folder that is no OPT checkpoint, `WeightFileError` for a file that is none, is
    damaged or holds groups, `StorageError` where nothing can be read.
    """
    if is_weight_file(source):
        return file_origin(read_layout(resolve(source)))
    return checkpoint_origin(source)


def is_weight_file(source: str | Path) -> bool:
    """Whether `source` is taken for a weight file: a folder of the name `demo` wins over the built-in model."""
    return Path(source).is_file() or (str(source) == DEMO and not Path(source).exists())


def convert(
    source: str | Path,
    out: str | Path,
    scheme: str = "none",
    group_size: int = 64,
    dtype: str = "float16",
    tokenizer_json: bytes | None = None,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert a Hugging Face OPT folder, or a weight file of scheme none, to the weight file `out`.

    Peak memory is a few slabs of rows, whatever the model's size. The file appears whole or not at all. Raises what
    `open_origin` does, `CheckpointError` for a folder that lacks tensors, `QuantizationError` for weights that cannot
    be quantized, `StorageError` where files cannot be read or written.
    """
    origin = open_origin(source)
    writer = WeightFileWriter(out, origin.spec, scheme, group_size, dtype, tokenizer_json)
    plan = origin.plan(writer.tensors)
    total, done = sum(rows.nbytes for parts in plan.values() for rows in parts), 0

    def slabs(parts: Sequence[Rows]) -> Iterator[tuple[str, Array]]:
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
    return Conversion(str(out), origin.spec, total, Path(out).stat().st_size, origin.unused(plan), writer.rounding)
