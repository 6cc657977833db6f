"""A reference run as a file: every row's token ids, its logits in float64, and how far other engines may be from them.

An .npz file that numpy reads: `ids_0` (S,), `logits_0` (P, V) of the last P positions, `bound_float32_0` (P, V) and the
like for other types, so for every row; `about`, a JSON object in bytes, says of which model and which rows.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flexref.architecture.spec import LARGEST_SIZES
from flexref.check.logits import COMPUTE_DTYPES, Compute, Job, bound_parts, exact_parts, hidden_states, parts
from flexref.check.logits_file import ArraysFile, ArraysWriter, check_room
from flexref.check.noisy import probable_arithmetic
from flexref.errors import LogitsFileError
from flexref.storage.weightfile import WeightFile
from flexref.units import is_integer
from flexref.version import __version__

FORMAT = 1

ABOUT_BYTES = 1 << 26
"""Bounds what a file says of itself."""


@dataclass(frozen=True, slots=True)
class RowAbout:
    """One row: what its owner calls it, its tokens, and of how many of the last positions there are logits."""

    record_id: str | int | None
    tokens: int
    positions: int


@dataclass(frozen=True, slots=True)
class About:
    """What a reference says of itself. `checksum` is that of all tensors of the weight file."""

    model: str
    checksum: str
    vocabulary: int
    dtypes: tuple[str, ...]
    rows: tuple[RowAbout, ...]
    spec: Mapping[str, Any]
    weights: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        return json.dumps({"format": FORMAT, "flexref": __version__, **asdict(self)}).encode()


def checksum_of(file: WeightFile) -> str:
    """Of all that the weight file's tensors hold, in hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for tensor in file.tensors.values():
        for part in tensor.parts:
            digest.update(f"{part.dataset} {part.shape} {part.dtype.str} {part.checksum}\n".encode())
    return digest.hexdigest()


def reference_bytes(job: Job, dtypes: Sequence[str]) -> int:
    """About how long the file of a job will be."""
    positions = sum(len(row) - first for row, first in zip(job.rows, job.firsts, strict=True))
    return positions * job.file.spec.vocabulary * (8 + 4 * len(dtypes))


def write_reference(
    path: str | Path,
    job: Job,
    record_ids: Sequence[str | int | None],
    dtypes: Sequence[str] = COMPUTE_DTYPES,
    on_stage: Callable[[int], None] = lambda count: None,
) -> About:
    """Compute every block of rows and write it as soon as it is there; what the file says of itself.

    `on_stage` is told 1 as often as `logits.stage_count` says. Raises `StorageError` at once where the disk has no room
    for the file.
    """
    file = job.file
    rows = tuple(
        RowAbout(record_id, len(ids), len(ids) - first)
        for record_id, ids, first in zip(record_ids, job.rows, job.firsts, strict=True)
    )
    weights = {"scheme": file.scheme, "group_size": file.group_size, "dtype": file.dtype}
    spec = asdict(file.spec)
    about = About(file.spec.name, checksum_of(file), file.spec.vocabulary, tuple(dtypes), rows, spec, weights)
    check_room(path, reference_bytes(job, dtypes))
    with ArraysWriter(path) as out:
        out.whole("about", np.frombuffer(about.to_bytes(), np.uint8))
        for block in job.blocks():
            states = {dtype: hidden_states(job, block, probable_arithmetic(dtype), on_stage) for dtype in dtypes}
            for row in block:
                out.whole(f"ids_{row}", np.asarray(job.rows[row], np.int64))
            for kind, stored, dtype, compute in _kinds(dtypes):
                for place, of_row in groupby(parts(file, states[dtype], compute), itemgetter(0)):
                    row = block[place]
                    with out.array(f"{kind}_{row}", (rows[row].positions, file.spec.vocabulary), stored) as write:
                        for _, part in of_row:
                            write(part)
                            on_stage(1)
    return about


def _kinds(dtypes: Sequence[str]) -> Iterator[tuple[str, str, str, Compute]]:
    """(what arrays are called, their type, of which computation's states, what computes them), in the file's order."""
    yield "logits", "float64", dtypes[0], exact_parts
    for dtype in dtypes:
        yield f"bound_{dtype}", "float32", dtype, partial(bound_parts, how=probable_arithmetic(dtype))


def read_about(file: ArraysFile) -> About:
    """What a reference says of itself; `LogitsFileError` if it is none, or of another format."""
    where = f"{file.path}: no reference of `flexref logits`"
    if "about" not in file.names:
        raise LogitsFileError(f"{where}: it has no array 'about'")
    try:
        found = json.loads(file.whole("about", "u", ABOUT_BYTES).astype(np.uint8).tobytes())
        if found["format"] != FORMAT:
            raise LogitsFileError(f"{where} that can be read: its format is {found['format']!r:.40}, needed {FORMAT}")
        rows = tuple(RowAbout(row["record_id"], row["tokens"], row["positions"]) for row in found["rows"])
        about = About(
            found["model"],
            found["checksum"],
            found["vocabulary"],
            tuple(found["dtypes"]),
            rows,
            found["spec"],
            found["weights"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LogitsFileError(f"{where}: what it says of itself is damaged: {error!r:.80}") from error
    if not _is_sound(about):
        raise LogitsFileError(f"{where}: what it says of itself contradicts itself")
    return about


def _is_sound(about: About) -> bool:
    sizes = [(about.vocabulary, LARGEST_SIZES["vocabulary"])]
    sizes += [(row.tokens, LARGEST_SIZES["positions"]) for row in about.rows]
    sizes += [(row.positions, row.tokens) for row in about.rows]
    names = [about.model, about.checksum, *about.dtypes]
    ids = [row.record_id for row in about.rows]
    return (
        all(is_integer(size) and is_integer(most) and 1 <= size <= most for size, most in sizes)
        and all(isinstance(name, str) for name in names)
        and all(record_id is None or isinstance(record_id, str) or is_integer(record_id) for record_id in ids)
        and set(about.dtypes) <= set(COMPUTE_DTYPES)
        and len(about.rows) > 0
    )
