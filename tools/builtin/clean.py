"""From a file's raw text to paragraphs of plain English; pure functions that know no package and no file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

# Straight quotes and dashes: one spelling of each mark, so that a small vocabulary need not learn two.
_MARKS = str.maketrans(
    {
        "\ufeff": "", "\u00a0": " ", "\u00ad": "", "\u200b": "", "\r": "",
        "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
        "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "--", "\u2026": "...",
    }
)  # fmt: skip
_SPACES = re.compile(r"[ \t]+")
_UNDERLINED = re.compile(r"(?<![A-Za-z0-9_])_([^_\n]+)_(?![A-Za-z0-9_])")
# Words that a demonstration should not learn to say; a paragraph that holds one is left out.
_COARSE = re.compile(
    r"\b(?:nigger\w*|niggah?\w*|negro(?:es|s|id\w*)?|squaws?|redskins?|injuns?|fuck\w*|shit\w*|cunt\w*|faggot\w*"
    r"|bitch\w*|whor(?:e|es|ed|ing|edom|edoms)"
    r"|rap(?:e|ed|es|ist|ists)|darkey\w*|darkie\w*|kike\w*|chink(?:s|y)?|ethnic slur|offensive (?:term|name|word)"
    r"|obscene|vulgar|disparag\w+|penis|vagina\w*|genital\w*|copulat\w+|sexual intercourse|masturbat\w+)\b",
    re.IGNORECASE,
)


def tidy(text: str) -> str:
    """`text` with plain marks, without underlining and without runs of spaces."""
    return _SPACES.sub(" ", _UNDERLINED.sub(r"\1", text.translate(_MARKS))).strip()


def is_coarse(paragraph: str) -> bool:
    """Whether the paragraph holds a word that a demonstration should not learn to say."""
    return _COARSE.search(paragraph) is not None


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph of documentation reads as sentences: long enough, ended, and mostly letters."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    ascii_only = sum(character < "\x7f" for character in paragraph) >= 0.99 * len(paragraph)
    ended = paragraph.rstrip("\"')").endswith((".", "!", "?", ":", ";"))
    long_enough = len(paragraph) >= 60 and paragraph.count(" ") >= 8
    return long_enough and ended and ascii_only and letters >= 0.86 * len(paragraph)


def without_gutenberg_frame(text: str) -> str:
    """The work itself: what stands between Project Gutenberg's start and end marks, where there are such marks."""
    start = re.search(r"\*\*\* ?START OF TH[^\n]*\*\*\*[^\n]*\n", text)
    end = re.search(r"\n(?:\*\*\* ?END OF TH|End of (?:the )?Project Gutenberg)", text)
    return text[start.end() if start else 0 : end.start() if end else len(text)]


def blocks(text: str) -> Iterator[list[str]]:
    """The runs of lines between blank lines, each line without its right-hand spaces."""
    block: list[str] = []
    for line in [*text.translate(_MARKS).split("\n"), ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def is_verse(block: list[str]) -> bool:
    """Whether the lines are verse: several, and all but the last far shorter than a line that was filled."""
    return len(block) >= 3 and sum(map(len, block[:-1])) < 50 * (len(block) - 1)


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a book: wrapped lines joined, verse kept line by line, ornaments left out."""
    for block in blocks(text):
        paragraph = "\n".join(map(tidy, block)) if is_verse(block) else tidy(" ".join(block))
        if re.search(r"[A-Za-z]", paragraph):
            yield paragraph


def lines(text: str) -> Iterator[str]:
    """The paragraphs of a play or a poem: every line kept, without the numbers that editors put at line ends."""
    for block in blocks(text):
        kept = [re.sub(r"\s{2,}\d+$", "", line) for line in block]
        paragraph = "\n".join(map(tidy, kept))
        if re.search(r"[A-Za-z]", paragraph):
            yield paragraph


class _Paragraphs(HTMLParser):
    """Collects the text of paragraphs, list items and definitions; code, tables and navigation are passed over."""

    _BLOCKS = frozenset(
        ("p", "li", "dd", "div", "section", "article", "blockquote", "br", "ul", "ol", "dl", "hr", "body")
    )
    _HEADS = frozenset(("dt", "title", "head", "h1", "h2", "h3", "h4", "h5", "h6"))
    _SKIPPED = _HEADS | frozenset(("pre", "script", "style", "table", "nav", "svg", "header", "footer"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipped: list[str] = []

    def flush(self) -> None:
        paragraph = tidy("".join(self._text).replace("\n", " "))
        self._text.clear()
        if paragraph:
            self.paragraphs.append(paragraph)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._BLOCKS or tag in self._SKIPPED:
            self.flush()
        if tag in self._SKIPPED:
            self._skipped.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._BLOCKS or tag in self._SKIPPED:
            self.flush()
        if tag in self._skipped:  # what opened inside and was never closed ends here too
            del self._skipped[self._skipped.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)


def html_prose(page: str) -> list[str]:
    """The paragraphs of a page of documentation that read as sentences, in order, each once."""
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    parser.flush()
    clean = (paragraph.replace("\u00b6", "").strip() for paragraph in parser.paragraphs)
    return [paragraph for paragraph in dict.fromkeys(clean) if is_prose(paragraph)]


def gloss(line: str) -> tuple[str, str] | None:
    """Lemma and gloss of one line of a WordNet data file; None for the licence lines and for coarse entries."""
    fields, mark, meaning = line.partition(" | ")
    if line.startswith("  ") or not mark:
        return None
    lemma = re.sub(r"\(\w+\)$", "", fields.split(" ")[4]).replace("_", " ")
    meaning = re.sub(r"\s+([;,.)])", r"\1", tidy(meaning))
    return None if is_coarse(f"{lemma} {meaning}") else (lemma, meaning)


def osis_chapters(markup: str) -> Iterator[tuple[str, list[str]]]:
    """(book, paragraphs) of each chapter of a Bible in OSIS markup; notes, titles and verse marks left out."""
    markup = re.sub(r"<(note|title|reference)\b[^>]*(?<!/)>.*?</\1>", " ", markup, flags=re.DOTALL)
    markup = re.sub(r"</?w\b[^>]*>", "", markup)  # a word's own mark, which may stand right after an opening quote
    for chapter in re.split(r"<chapter\b(?=[^>]*\bsID=)", markup)[1:]:
        name = re.search(r'osisID="([^".]+)', chapter)
        end = re.search(r"<chapter\b[^>]*\beID=", chapter)
        body = chapter[chapter.index(">") + 1 : end.start() if end else len(chapter)]
        pieces = re.split(r'<(?:div|lg)\b[^>]*(?:type="x-p"|type="paragraph"|sID)[^>]*>', body)
        plain = [tidy(re.sub(r"<[^>]*>", " ", piece).replace("\n", " ")) for piece in pieces]
        plain = [re.sub(r"\s+([,.;:!?])", r"\1", paragraph) for paragraph in plain]
        yield (name.group(1) if name else ""), [paragraph for paragraph in plain if re.search(r"[A-Za-z]", paragraph)]


def verses(text: str) -> Iterator[tuple[str, list[str]]]:
    """(book, paragraphs) of each chapter of a Bible printed one verse a line as `Ge1:1 In the beginning ...`."""
    chapter = ("", "")
    found: list[str] = []
    for line in [*text.translate(_MARKS).split("\n"), "End0:0 "]:
        reference = re.match(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line)
        if reference is None:
            continue
        book, number = str(reference.group(1)), str(reference.group(2))
        if (book, number) != chapter:
            if found:
                yield chapter[0], list(grouped(found, 400))
            chapter, found = (book, number), []
        found.append(tidy(reference.group(3)))


def grouped(sentences: Iterable[str], characters: int) -> Iterator[str]:
    """Sentences joined to paragraphs of about `characters` each."""
    paragraph = ""
    for sentence in sentences:
        paragraph = f"{paragraph} {sentence}".strip()
        if len(paragraph) >= characters:
            yield paragraph
            paragraph = ""
    if paragraph:
        yield paragraph
