"""Weights that no file holds: the layout that a writer would give them, and their bytes, random and at once.

They stand where a file's bytes would be read, so that loading fills every region in place. A byte depends on the seed
and on its place in the layout alone: on which tier a tensor lies changes nothing.
"""

import os
from bisect import bisect_right
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.architecture.program import Role, TensorKind, program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import TensorSpec
from flexref.errors import WeightFileError
from flexref.storage.quant import levels
from flexref.storage.schema import BITS, GROUP_PARTS, FileHeader, PartSpec
from flexref.storage.weightfile import Extent, Part, StoredTensor, WeightFile
from flexref.units import aligned

Bytes = npt.NDArray[np.uint8]

TILE_ELEMENTS = (1 << 21) - 9
"""Elements of a tile, a prime: as long as no matrix has it among its lengths, the rows cut from a tile all differ."""

FILL_BYTES = 8 << 20
"""What one thread fills at a time: long beside the cost of a call, short beside a layer."""

MOST_THREADS = 16
"""More threads write no faster: the memory itself is the limit."""

WEIGHT_DEVIATION = 0.02
"""Standard deviation of matrices, tables and biases: OPT's own at the start of its training."""

NORM_DEVIATION = 0.1
"""Standard deviation of norm gains around 1: a wider spread would let single channels dominate."""

STEP_DEVIATION = 0.1
"""Relative standard deviation of the groups' scales: groups of a trained model differ too."""


@dataclass(frozen=True, slots=True)
class RandomFile(WeightFile):
    """A weight file without a file: its parts have places and no checksums, its contents come from `seed`."""

    seed: int


def random_file(
    spec: ModelSpec, *, scheme: str = "none", dtype: str = "float16", group_size: int = 64, seed: int = 0
) -> RandomFile:
    """The layout of a weight file of `spec` as a writer would lay it out; nothing is allocated."""
    header = FileHeader.of(spec, scheme, group_size, dtype)
    path = f"random weights of {spec.name}"
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for stage in header.stages():
        for tensor in stage.tensors:
            parts = []
            for part in header.parts(tensor):
                parts.append(_part(path, part, aligned(end)))
                end = parts[-1].extent.stop
            held = header.scheme_of(tensor)
            groups = None if held == "none" else header.group_size
            tensors[tensor.name] = StoredTensor(tensor, held, groups, tuple(parts))
    return RandomFile(
        path,
        spec,
        header.scheme,
        header.group_size,
        dtype,
        header.tile_rows,
        tensors,
        tokenizer=None,
        tokenizer_json=None,
        file_bytes=end,
        seed=seed,
    )


def _part(path: str, part: PartSpec, offset: int) -> Part:
    return Part(part.dataset, part.shape, part.dtype, Extent(path, offset, part.nbytes), checksum=0)


class RandomWeights:
    """The contents of a `RandomFile`, as a `tiers.weights.WeightSource`: what is read from it is filled in place.

    Every part is cut from a tile of its kind, at a place of its own: as good as fresh numbers to time with, and as fast
    as memory can be written. Codes are uniform, scales and zeros such that a group's values lie around 0.
    """

    checked = False
    direct = True
    progress = 0

    def __init__(self, file: RandomFile) -> None:
        self._parts = sorted(
            ((tensor, part) for tensor in file.tensors.values() for part in tensor.parts),
            key=lambda entry: entry[1].extent.offset,
        )
        self._offsets = [part.extent.offset for _, part in self._parts]
        self._seed, self.path = file.seed, file.path
        self._added = program_of(file.spec).added
        self._tiles = _tiles(file)
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))), "flexref random weights")

    def read(self, offset: int, into: Bytes, checker: object = None) -> None:
        """Fill all of `into` with the bytes from `offset` on, zeros in the gaps between parts; several threads."""
        starts = range(0, into.nbytes, FILL_BYTES)
        list(self._pool.map(lambda start: self._fill(offset + start, into[start : start + FILL_BYTES]), starts))

    def ask_ahead(self, offset: int, into: Bytes) -> None:
        """Nothing comes from anywhere, so nothing is asked for."""

    def read_rows(self, offsets: npt.NDArray[np.int64], into: Bytes, checksums: object = None) -> None:
        """into (R, row bytes): the bytes from each of the `offsets` on."""
        for offset, row in zip(offsets.tolist(), into, strict=True):
            self._fill(offset, row)

    def reading(self, offset: int, nbytes: int) -> "RandomWeights":
        """A range that is read in pieces is no other than one that is not."""
        return self

    def begin_again(self, error: WeightFileError) -> None:
        """What follows from a seed is the same every time."""
        raise error

    def check_unchanged(self) -> None:
        """They follow from the seed."""

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _fill(self, offset: int, into: Bytes) -> None:
        done, end = 0, offset + into.nbytes
        for place in range(max(0, bisect_right(self._offsets, offset) - 1), len(self._parts)):
            tensor, part = self._parts[place]
            first, stop = max(offset, part.extent.offset), min(end, part.extent.stop)
            if part.extent.offset >= end:
                break
            if first < stop:
                into[done : first - offset] = 0
                self._copy(tensor, part, first - part.extent.offset, into[first - offset : stop - offset])
                done = stop - offset
        into[done:] = 0

    def _kind(self, tensor: StoredTensor, part: Part) -> tuple[str, str]:
        """(spread, what the part holds): a key of `_tiles`."""
        held = "dense" if len(tensor.parts) == 1 else GROUP_PARTS[tensor.parts.index(part)]
        return ("other", "codes") if held == "codes" else (_spread(tensor.spec, self._added), held)

    def _copy(self, tensor: StoredTensor, part: Part, start: int, into: Bytes) -> None:
        """Bytes of a part from `start` on: those of its tile, round and round, from the part's own place on."""
        tile = self._tiles[self._kind(tensor, part)]
        # All parts of a tensor start at one element: a group's zero then goes with its scale.
        own = xxhash.xxh3_64_intdigest(tensor.name.encode(), self._seed) % TILE_ELEMENTS
        at = (own * part.dtype.itemsize + start) % tile.nbytes
        done = 0
        while done < into.nbytes:
            size = min(tile.nbytes - at, into.nbytes - done)
            np.copyto(into[done : done + size], tile[at : at + size])
            done, at = done + size, 0


def _spread(tensor: TensorSpec, added: Collection[Role]) -> str:
    """How its values lie: as a norm's gain, a matrix whose results are added to the hidden state, or anything else."""
    if tensor.kind is TensorKind.GAIN:
        return "gain"
    return "out" if tensor.kind is TensorKind.MATRIX and tensor.role in added else "other"


def _tiles(file: RandomFile) -> Mapping[tuple[str, str], Bytes]:
    """The bytes of every kind's tile. Residual outputs are smaller with depth, as in GPT-2: no sum of layers grows."""
    draw = np.random.default_rng(file.seed)
    dtype = np.dtype(file.dtype).newbyteorder("<")
    normal = draw.standard_normal(TILE_ELEMENTS, np.float32)
    top = levels(BITS.get(file.layout, 4))
    codes_deviation = ((top + 1) ** 2 - 1) ** 0.5 / 12**0.5  # of codes that are uniform from 0 to `top`
    deviations = {"other": WEIGHT_DEVIATION, "out": WEIGHT_DEVIATION / (2 * file.spec.layers) ** 0.5}
    tiles: dict[tuple[str, str], npt.NDArray[Any]] = {
        ("gain", "dense"): (1 + NORM_DEVIATION * normal).astype(dtype),
        ("other", "codes"): draw.integers(0, 256, TILE_ELEMENTS, np.uint8),
    }
    for role, deviation in deviations.items():
        tiles[role, "dense"] = (deviation * normal).astype(dtype)
        step = deviation / codes_deviation
        scale = np.maximum(step * (1 + STEP_DEVIATION * normal), 0).astype(dtype)
        tiles[role, "scale"] = scale
        tiles[role, "zero"] = (-top / 2 * scale.astype(np.float32)).astype(dtype)
    return {kind: tile.view(np.uint8) for kind, tile in tiles.items()}
