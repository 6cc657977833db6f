"""Changes of a CUDA file, from its tokens: constants, comparisons, arithmetic, indices, axes, barriers.

The sources are laid out by one rule: a binary operator has blanks on both sides, a template's angle and a pointer's
star have not. So tokens are enough, and no parser of C++ is asked for.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mutate_operators_run.mutant import Change

OPERATORS = {
    **{"<": ("<=", "comparison"), "<=": ("<", "comparison"), ">": (">=", "comparison"), ">=": (">", "comparison")},
    **{"==": ("!=", "comparison"), "!=": ("==", "comparison"), "&&": ("||", "comparison"), "||": ("&&", "comparison")},
    **{"+": ("-", "arithmetic"), "-": ("+", "arithmetic"), "*": ("+", "arithmetic"), "/": ("*", "arithmetic")},
    **{"%": ("/", "arithmetic"), "<<": (">>", "arithmetic"), ">>": ("<<", "arithmetic"), "&": ("|", "arithmetic")},
    **{"|": ("&", "arithmetic"), "+=": ("-=", "arithmetic"), "-=": ("+=", "arithmetic"), "*=": ("+=", "arithmetic")},
}
NAMES = {"min": "max", "max": "min", "fminf": "fmaxf", "fmaxf": "fminf", "low_halves": "high_halves"}
BARRIERS = ("__syncthreads", "__syncwarp", "await_batches", "close_batch", "__threadfence", "copy_beside")
"""Calls that stand alone; `await_earlier` is not among them, since the port compiles no kernel without it."""

AXES = {".x": ".y", ".y": ".x", ".z": ".x"}
COORDINATES = ("blockIdx", "gridDim", "threadIdx", "blockDim")

_TOKEN = re.compile(
    r"""(?P<skipped>//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:[^\n\\]|\\.)*
        |\basm\b(?:[^;"]|"(?:[^"\\]|\\.)*")*;|"(?:[^"\\]|\\.)*")
      |(?P<number>(?:0x[0-9a-fA-F]+|\d+\.?\d*(?:e[+-]?\d+)?)[uUlLfF]*)
      |(?P<axis>\.[xyz]\b)
      |(?P<word>\w+)
      |(?P<operator><<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|\+\+|--|->|::|[^\s\w])""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_FUNCTION = re.compile(
    r"^ *(?:extern|__device__|template|static)[^;{}=]*?\b(?!__)(\w+)\s*\([^;{}]*\)[^;{}()]*\{", re.MULTILINE
)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def changes(text: str) -> Iterator[Change]:
    """All changes of the text of a CUDA file."""
    tokens = [
        _Token(found.lastgroup or "", found.group(), found.start())
        for found in _TOKEN.finditer(text)
        if found.lastgroup != "skipped"
    ]
    owners = [
        (found.start(1), found.group(1), text.count("\n", 0, found.start()) + 1) for found in _FUNCTION.finditer(text)
    ]
    for place, token in enumerate(tokens):
        owner = next(((name, line) for start, name, line in reversed(owners) if start <= token.start), ("", 0))
        for start, end, after, kind in _of_token(text, tokens, place):
            yield Change(start, end, after, kind, *owner)


def _of_token(text: str, tokens: list[_Token], place: int) -> Iterator[tuple[int, int, str, str]]:
    """(start, end, after, kind) of the changes that begin with a token."""
    token = tokens[place]
    last = tokens[place - 1].text if place else ""
    if token.kind == "number":
        yield from ((token.start, token.end, after, "constant") for after in _numbers(token.text))
    elif token.kind == "axis" and last in COORDINATES:
        yield token.start, token.end, AXES[token.text], "axes"
    elif token.kind == "word":
        yield from _of_word(text, tokens, place)
    elif token.text == "[" and place + 1 < len(tokens):
        yield from _index(tokens, place)
    elif token.text == "!" and text[token.end] not in " =":
        yield token.start, token.end, "", "comparison"
    elif token.text in OPERATORS and text[token.start - 1] in " \n" and text[token.end] in " \n":
        yield token.start, token.end, *OPERATORS[token.text]


def _of_word(text: str, tokens: list[_Token], place: int) -> Iterator[tuple[int, int, str, str]]:
    token, last = tokens[place], tokens[place - 1].text if place else ""
    if token.text in NAMES and text[token.end : token.end + 1] == "(" and last not in ("float", "int", "pair"):
        yield token.start, token.end, NAMES[token.text], "function"
    elif token.text in BARRIERS and last in (";", "{", "}", ")"):
        yield token.start, text.index(";", token.start), "", "barrier"
    elif token.text in ("true", "false"):
        yield token.start, token.end, "false" if token.text == "true" else "true", "constant"
    elif token.text == "continue":
        yield token.start, token.end, "", "statement"


def _index(tokens: list[_Token], place: int) -> Iterator[tuple[int, int, str, str]]:
    """`a[place]` becomes `a[place + 1]`; a declaration's length is a constant, and those have great letters."""
    inside, after = tokens[place + 1], tokens[place + 2 : place + 3]
    if inside.kind == "word" and after and after[0].text == "]" and not inside.text.isupper():
        yield inside.start, inside.end, f"{inside.text} + 1", "index"


def _numbers(text: str) -> Iterator[str]:
    """What stands in the place of a number: the next one, or of a fraction twice as much."""
    digits = text.rstrip("uUlL" if text.startswith("0x") else "uUlLfF")
    suffix = text[len(digits) :]
    if digits.startswith("0x"):
        yield f"{int(digits, 16) ^ 1:#x}{suffix}"
    elif "." in digits or "e" in digits or suffix in ("f", "F"):
        value = float(digits)
        yield f"{value * 2 if value else 1.0!r}{suffix}"
    else:
        yield f"{int(digits) + 1}{suffix}"
        if int(digits) == 1:
            yield f"0{suffix}"
