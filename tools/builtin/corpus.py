"""From works to a training text and held-out files, so that nothing held out is trained on; it knows no package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

# Thirteen words in a row are no accident: a training paragraph that shares them with a held-out one is a quotation.
SHARED_WORDS = 13
# A shorter paragraph that is word for word a held-out one goes too, unless it is as short as "Yes, my lord."
SHORT_WORDS = 6


def words(text: str) -> list[str]:
    """The words of `text` in small letters, without marks: what two spellings of one line share."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def shingles(text: str) -> Iterator[int]:
    """The hash of every run of SHARED_WORDS words, and of a shorter text as a whole where it has SHORT_WORDS."""
    found = words(text)
    if SHORT_WORDS <= len(found) < SHARED_WORDS:
        yield hash(tuple(found))
    for start in range(len(found) - SHARED_WORDS + 1):
        yield hash(tuple(found[start : start + SHARED_WORDS]))


def quoted(paragraph: str, held: frozenset[int]) -> bool:
    """Whether the paragraph repeats what is held out."""
    return any(shingle in held for shingle in shingles(paragraph))


def held_shingles(paragraphs: Iterable[str]) -> frozenset[int]:
    """The shingles of all held-out paragraphs; of a gloss `lemma: meaning`, those of the meaning alone too."""
    found: set[int] = set()
    for paragraph in paragraphs:
        found.update(shingles(paragraph))
        lemma, mark, meaning = paragraph.partition(": ")
        if mark and len(lemma) < 60:
            found.update(shingles(meaning))
    return frozenset(found)


def chunked(paragraphs: Iterable[str], separator: str, characters: int) -> Iterator[str]:
    """Documents of about `characters` each, cut between paragraphs, so that many documents begin anywhere in a work."""
    document: list[str] = []
    length = 0
    for paragraph in paragraphs:
        document.append(paragraph)
        length += len(paragraph) + len(separator)
        if length >= characters:
            yield separator.join(document) + "\n"
            document, length = [], 0
    if document:
        yield separator.join(document) + "\n"


def without_quotations(paragraphs: Iterable[str], held: frozenset[int], coarse: Callable[[str], bool]) -> list[str]:
    """The paragraphs that may be trained on: none that repeats held-out text, none that is coarse."""
    return [text for text in paragraphs if not coarse(text) and not quoted(text, held)]
