"""Reads the rows of a job from a file of lengths, given one by one, many at a time, or to be drawn; it plans nothing.

A line is a JSON object: `{"prompt_tokens": 37, "new_tokens": 12}` is a row, with `"rows": 9` nine of them. In place of
a number stands how it is drawn for each of the line's rows: `{"uniform": [16, 512]}`, both ends included, or
`{"values": [16, 64], "weights": [3, 1]}`, equally often without weights. The same `seed` draws the same rows. With
`"shared_tokens": 30` all rows of the line begin with the same so many tokens.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.block.counted_rows import CountedRows
from flexref.errors import PromptError
from flexref.files import as_text, filled_lines
from flexref.json_types.containers import ListOf, ReadBy
from flexref.json_types.objects import JsonField, JsonObject
from flexref.json_types.parsing import as_json
from flexref.json_types.values import Either, Number, Whole, shown
from flexref.planner.plan_request import MOST_ROWS, MOST_TOKENS
from flexref.units import is_integer

DRAWN_ROWS_MOST = 1 << 22
"""Bounds the rows that a file has drawn: each of them takes memory, which rows that are alike do not."""

CHOICES_MOST = 1 << 16
"""Bounds the values of a distribution."""

SEED_MOST = (1 << 64) - 1

KNOWN_LINES = 1 << 16
"""So many different lines are remembered: a file repeats itself, and reading JSON takes the most time."""

TOKENS = Whole(1, MOST_TOKENS)

UNIFORM = JsonObject(
    "Uniform",
    "Every number of tokens from the first to the last is drawn equally often.",
    {"uniform": JsonField(ListOf(TOKENS, 2, 2), "The first number and the last.")},
)

WEIGHTED = JsonObject(
    "Weighted",
    "One of some numbers of tokens is drawn.",
    {
        "values": JsonField(ListOf(TOKENS, 1, CHOICES_MOST), "The numbers that may be drawn."),
        "weights": JsonField(ListOf(Number(0), 1, CHOICES_MOST), "How often each is, beside the others.", ()),
    },
)

DISTRIBUTIONS = {"uniform": UNIFORM, "values": WEIGHTED}

NEEDED = f'{TOKENS.needed}, {{"uniform": [first, last]}} or {{"values": [...], "weights": [...]}}'


def _tokens(what: str, value: Any) -> int | Mapping[str, Any]:
    """A number of tokens, or the distribution that it is drawn from, which can be drawn from; else `PromptError`."""
    if TOKENS.takes(value):
        return int(value)
    known = [kind for name, kind in DISTRIBUTIONS.items() if isinstance(value, dict) and name in value]
    if not known:
        raise PromptError(f"{what} must be {NEEDED}, found {shown(value)}")
    read: dict[str, Any] = known[0].read_members(f"{what}: ", value, PromptError)
    if "uniform" in read and read["uniform"][0] > read["uniform"][1]:
        raise PromptError(f"{what}: the first number of uniform is above the last: {shown(value)}")
    weights = read.get("weights", ())
    if weights and (len(weights) != len(read["values"]) or not 0 < sum(weights) < np.inf):
        raise PromptError(f"{what}: needed a weight for each of the values, some above 0: {shown(value)}")
    return read


LENGTH = ReadBy(Either((TOKENS, UNIFORM, WEIGHTED)), _tokens)

LINE = JsonObject(
    "Lengths",
    "A line of a file of lengths: one row or many, of given lengths or of drawn ones.",
    {
        "prompt_tokens": JsonField(LENGTH, "Tokens of the prompt."),
        "new_tokens": JsonField(LENGTH, "New tokens of the row."),
        "rows": JsonField(Whole(1, MOST_ROWS), "How many such rows follow each other.", 1),
        "shared_tokens": JsonField(TOKENS, "With how many same tokens all of them begin; none if it is missing.", 0),
        "seed": JsonField(Whole(0, SEED_MOST), "Of what is drawn.", 0),
    },
)


def read_lengths(path: str | Path) -> CountedRows:
    """The rows of a file of lengths, in its order.

    Raises `PromptError` that names file and line of what is no line of lengths, `StorageError` if it cannot be read.
    """
    found: list[list[npt.NDArray[np.int64]]] = []
    plain: list[tuple[int, int, int, int, int]] = []
    rows = drawn = prefix = 0
    for place, line in _lines(path):
        count = line.get("rows", 1)
        rows += count
        if rows > MOST_ROWS:
            raise PromptError(f"{place}: that is more than {MOST_ROWS} rows in all")
        both = line["prompt_tokens"], line["new_tokens"]
        if is_integer(both[0]) and is_integer(both[1]):
            shared = _shared(place, line, both[0])
            prefix += shared > 0
            plain.append((both[0], both[1], count, shared, prefix if shared else 0))
            if len(plain) >= KNOWN_LINES:
                found.append(_columns(plain))
            continue
        drawn += count
        if drawn > DRAWN_ROWS_MOST:
            raise PromptError(f"{place}: more than {DRAWN_ROWS_MOST} rows are drawn in all")
        some = draw(line)
        shared = _shared(place, line, int(some[0].min()))
        prefix += shared > 0
        alike = (np.full(count, number, np.int64) for number in (shared, prefix if shared else 0))
        found += [_columns(plain), [*some, *alike]]
    found.append(_columns(plain))
    if not rows:
        raise PromptError(f"{path}: holds no row")
    return CountedRows.of_runs(*map(np.concatenate, zip(*found, strict=True)))


def _lines(path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, members) of every line."""
    known: dict[bytes, Mapping[str, Any]] = {}
    for place, text in filled_lines(path, PromptError):
        line = known.get(text)
        if line is None:
            line = _line(place, text)
            if len(known) < KNOWN_LINES:
                known[text] = line
        yield place, line


def _line(place: str, text: bytes) -> Mapping[str, Any]:
    value = as_json(as_text(text, place, PromptError), place, PromptError)
    if not isinstance(value, dict):
        raise PromptError(f"{place}: needed a JSON object with {', '.join(LINE.required)}, found {shown(value)}")
    line = LINE.read_members(f"{place}: ", value, PromptError)
    if "seed" in line and all(is_integer(line[name]) for name in LINE.required):
        raise PromptError(f"{place}: has a seed, and nothing is drawn")
    return line


def _shared(place: str, line: Mapping[str, Any], shortest: int) -> int:
    """How many tokens the engine lets the rows of a line share, whose shortest prompt has so many: whole chunks."""
    asked: int = line.get("shared_tokens", 0)
    if asked >= shortest:
        raise PromptError(f"{place}: shared_tokens is {asked}, and a prompt has {shortest}: its last is always its own")
    return asked // CHUNK_TOKENS * CHUNK_TOKENS if line.get("rows", 1) > 1 else 0


def _columns(plain: list[tuple[int, int, int, int, int]]) -> list[npt.NDArray[np.int64]]:
    """The rows so far as the arrays of `CountedRows.of_runs`; the list is emptied."""
    columns = list(np.array(plain, np.int64).reshape(-1, 5).T.copy())
    plain.clear()
    return columns


def draw(line: Mapping[str, Any]) -> list[npt.NDArray[np.int64]]:
    """(R,) prompt tokens, new tokens and counts, which are 1, of the rows of a line that has them drawn."""
    count = line.get("rows", 1)
    generator = np.random.default_rng(line.get("seed", 0))
    return [*(_drawn(line[name], count, generator) for name in LINE.required), np.ones(count, np.int64)]


def _drawn(length: int | Mapping[str, Any], count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """(count,) tokens; a number that is given is not drawn."""
    if isinstance(length, int):
        return np.full(count, length, np.int64)
    if "uniform" in length:
        first, last = length["uniform"]
        return generator.integers(first, last, count, np.int64, endpoint=True)
    weights = np.array(length.get("weights") or np.ones(len(length["values"])))
    return generator.choice(np.array(length["values"], np.int64), count, p=weights / weights.sum())
