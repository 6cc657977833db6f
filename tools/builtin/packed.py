"""The training text as compressed token ids, one file that travels to a machine without network; it knows no model."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]


class Encoder(Protocol):
    """What packing needs of a tokenizer: ids of many texts, each begun with </s>."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[object]: ...


@dataclass(frozen=True)
class Packed:
    """Ids (N,) of all documents, where each begins (D + 1,), each one's weight (D,), and held-out ids and bytes."""

    ids: Ids
    begins: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    held: dict[str, Ids]
    held_bytes: dict[str, int]


def thinned(texts: Sequence[str], share: float) -> list[str]:
    """That share of the texts, evenly spread."""
    return [text for index, text in enumerate(texts) if int((index + 1) * share) > int(index * share)]


def pack(
    documents: Mapping[str, Sequence[str]], weights: Mapping[str, float], held: Mapping[str, str], encoder: Encoder
) -> Packed:
    """Encodes the documents of every source and the held-out texts; a held-out text keeps one </s>, its first id."""
    pieces: list[Ids] = []
    weight: list[float] = []
    for source, texts in documents.items():
        pieces += [np.asarray(encoding.ids, np.uint16) for encoding in encoder.encode_batch(list(texts))]  # type: ignore[attr-defined]
        weight += [weights[source]] * len(texts)
    begins = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    encoded = {name: encoder.encode_batch([text])[0] for name, text in held.items()}
    held_ids = {name: np.asarray(encoding.ids, np.uint16) for name, encoding in encoded.items()}  # type: ignore[attr-defined]
    held_bytes = {name: len(text.encode()) for name, text in held.items()}
    return Packed(np.concatenate(pieces), begins, np.asarray(weight), held_ids, held_bytes)


def write(packed: Packed, path: Path) -> None:
    """One xz file: a line of JSON, then the ids. The lengths of documents stand in the header as numbers."""
    header = {
        "lengths": np.diff(packed.begins).tolist(),
        "weights": packed.weights.tolist(),
        "held": {name: len(ids) for name, ids in packed.held.items()},
        "held_bytes": packed.held_bytes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Pairs of bytes compress better when the decoder knows that they are pairs (lp, pb = 1).
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1}]
    with lzma.open(path, "wb", filters=filters) as stream:
        stream.write(json.dumps(header).encode() + b"\n")
        for ids in (packed.ids, *packed.held.values()):
            stream.write(ids.astype("<u2").tobytes())


def read(path: Path) -> Packed:
    """What `write` wrote."""
    with lzma.open(path, "rb") as stream:
        header = json.loads(stream.readline())
        begins = np.cumsum([0, *header["lengths"]], dtype=np.int64)
        ids = np.frombuffer(stream.read(2 * int(begins[-1])), "<u2")
        held = {name: np.frombuffer(stream.read(2 * count), "<u2") for name, count in header["held"].items()}
    return Packed(ids, begins, np.asarray(header["weights"]), held, header["held_bytes"])


def epoch_stream(packed: Packed, random: np.random.Generator) -> tuple[Ids, npt.NDArray[np.int64]]:
    """One epoch: every document as often as its weight says (a fraction by lot), shuffled; ids and beginnings."""
    whole = np.floor(packed.weights)
    repeats = (whole + (random.random(len(whole)) < packed.weights - whole)).astype(np.int64)
    order = random.permutation(np.repeat(np.arange(len(repeats)), repeats))
    stream = np.concatenate([packed.ids[packed.begins[document] : packed.begins[document + 1]] for document in order])
    lengths = np.diff(packed.begins)[order]
    return stream, np.cumsum(lengths) - lengths


def drawn(packed: Packed, tokens: int, random: np.random.Generator) -> list[Ids]:
    """Whole documents by lot, as likely as their weights say, until they have so many tokens together."""
    chosen: list[Ids] = []
    while sum(map(len, chosen)) < tokens:
        document = random.choice(len(packed.weights), p=packed.weights / packed.weights.sum())
        chosen.append(packed.ids[packed.begins[document] : packed.begins[document + 1]])
    return chosen


def windows(
    stream: Ids, begins: npt.NDArray[np.int64], length: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Starts of an epoch's windows (W,): half of them moved to the next beginning, as a prompt begins with </s>."""
    starts = np.arange(int(random.integers(length)), len(stream) - length - 1, length)
    following = begins[np.minimum(np.searchsorted(begins, starts), len(begins) - 1)]
    moved = np.where(random.random(len(starts)) < 0.5, following, starts)
    return random.permutation(moved[moved + length < len(stream)])


def held_windows(ids: Ids, length: int) -> list[Ids]:
    """A held-out text cut into runs of up to `length` - 1 ids, each begun with the text's first id, </s>."""
    return [np.concatenate([ids[:1], ids[at : at + length - 1]]) for at in range(1, len(ids), length - 1)]
