"""The dense tensors of a weight file by rows, to make another file from; it writes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexref.architecture.program import Role
from flexref.architecture.stages import TensorSpec
from flexref.errors import WeightFileError
from flexref.storage.origin import Origin, Plan
from flexref.storage.quant import Array
from flexref.storage.weightfile import Part, WeightFile, read_part_rows, verify
from flexref.storage.writer import slab_rows


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows `first` to `stop` of a dataset of a weight file."""

    part: Part
    first: int
    stop: int

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.part.dataset

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the file."""
        return self.part.extent.nbytes * (self.stop - self.first) // self.part.shape[0]

    def slabs(self) -> Iterator[tuple[str, Array]]:
        """The rows a slab at a time, each with the name of its dataset."""
        step = slab_rows(self.part.shape)
        for first in range(self.first, self.stop, step):
            yield self.name, read_part_rows(self.part, first, min(first + step, self.stop))


def file_origin(file: WeightFile) -> Origin:
    """The tensors of a file that holds them dense; `WeightFileError` for one in groups, or that is damaged.

    All of it is read once to check it: what is made from damaged weights could not be told from good ones.
    """
    if file.scheme != "none":
        raise WeightFileError(
            f"{Path(file.path).name} holds {file.scheme} weights: only a file of scheme none, or the Hugging Face "
            "folder, can be converted"
        )
    damaged = verify(file.path)
    if damaged:
        raise WeightFileError(f"{file.path}: dataset {damaged[0]} is damaged: its checksum does not match")
    return Origin(file.spec, lambda tensors: _plan(file, tensors), tuple(file.tensors))


def _plan(file: WeightFile, tensors: Sequence[TensorSpec]) -> Plan:
    """A tensor is itself; a tile is cut from the tiles of the file, which may be of another height."""
    plan: dict[str, list[FileRows]] = {}
    next_row: dict[Role, int] = {}
    for tensor in tensors:
        if not tensor.is_tile:
            plan[tensor.name] = [FileRows(file.tensors[tensor.name].parts[0], 0, tensor.shape[0])]
            continue
        first = next_row.get(tensor.role, 0)
        next_row[tensor.role] = stop = first + tensor.shape[0]
        plan[tensor.name] = list(_cut(file, tensor.role, first, stop))
    return plan


def _cut(file: WeightFile, table: Role, first: int, stop: int) -> Iterator[FileRows]:
    """Rows `first` to `stop` of a table of the file."""
    begin = 0
    for stored in file.tensors.values():
        if stored.spec.role is table:
            end = begin + stored.shape[0]
            if max(first, begin) < min(stop, end):
                yield FileRows(stored.parts[0], max(first, begin) - begin, min(stop, end) - begin)
            begin = end
