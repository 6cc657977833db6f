"""A job's input looked over as the job would read it: what cannot be served and why, and how long its rows are.

It knows no engine. Memory is flat, however many lines there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from flexref.batch_job.answers import Line
from flexref.batch_job.input_file import Scan, read_lines
from flexref.batch_job.lines.prompt_tokens import PromptLength
from flexref.batch_job.lines.wrong_line import WrongLine
from flexref.batch_job.request_lines import LineLengths, RequestReader
from flexref.block.rows import RowLengths
from flexref.errors import BatchError
from flexref.json_types.containers import ListOf
from flexref.json_types.values import Whole
from flexref.text.prompts import new_token_room

OPENAI_LINES, OPENAI_BYTES = 50_000, 200_000_000
"""What that service takes at a time."""

SAMPLE_ROWS = 1 << 14
"""Rows whose lengths are kept, at most: of a longer job those of every second line, every fourth and so on."""

KINDS_MOST, EXAMPLES = 100, 3
"""Kinds of errors that are told apart by their fields, and lines that are named of each."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Lines that cannot be served for the same reason."""

    code: Annotated[str, "The reason, for programs."]
    field: Annotated[str | None, "The field that is to blame; null if none is, or if there are too many kinds."]
    count: Annotated[int, Whole(1), "How many lines."]
    lines: Annotated[tuple[int, ...], ListOf(Whole(1)), "The first of them."]
    message: Annotated[str, "What is wrong with the first one."]

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return {
            "code": self.code,
            "field": self.field,
            "count": self.count,
            "lines": list(self.lines),
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Validation:
    """What the job's input holds. `sample`: lengths of the rows of every so manyth line, in order;
    of a short job those of all."""

    lines: Annotated[int, Whole(0), "Lines that are not blank."]
    blank: Annotated[int, Whole(0), "Blank lines."]
    failed: Annotated[int, Whole(0), "Lines that cannot be served."]
    rows: Annotated[int, Whole(0), "Rows of all others: prompts, each as often as it has choices."]
    prompt_tokens: Annotated[int, Whole(0), "Tokens of the prompts, each once."]
    counted: Annotated[bool, "Whether those were counted; else they are estimated from those of every so manyth line."]
    new_tokens: Annotated[int, Whole(0), "The most new tokens of all rows together."]
    errors: tuple[ErrorKind, ...]
    sample: tuple[RowLengths, ...]

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, without the sample."""
        names = ("lines", "blank", "failed", "rows", "prompt_tokens", "counted", "new_tokens")
        return {**{name: getattr(self, name) for name in names}, "errors": [kind.to_json() for kind in self.errors]}


def check_openai_limits(found: Scan) -> None:
    """Raise `BatchError` for an input that is more than that service takes at a time."""
    filled = int(found.filled.sum())
    if filled > OPENAI_LINES:
        raise _beyond(found, f"{filled} requests", f"{OPENAI_LINES}")
    if found.size_bytes > OPENAI_BYTES:
        raise _beyond(found, f"{found.size_bytes} bytes", f"{OPENAI_BYTES} (200 MB)")


def _beyond(found: Scan, what: str, limit: str) -> BatchError:
    return BatchError(f"{found.path} has {what}, the limit is {limit}; divide it, or leave out --limits")


def validate(found: Scan, reader: RequestReader, positions: int, numbers: Iterable[int] | None = None) -> Validation:
    """Read all lines, or those of `numbers`, which rise, as the job would. `positions` are the model's.

    Every line that cannot be served is found. Tokens are counted of the lines of the sample, and of texts that may be
    too long; those of others are estimated from their bytes. Raises `StorageError`.
    """
    counts = _Counts(positions)
    for line in read_lines(found, numbers):
        try:
            lengths = reader.lengths(line, counted=counts.counted)
        except WrongLine as why:
            counts.fail(line, why)
        else:
            counts.add(lengths)
    return counts.result()


@dataclass(slots=True)
class _Counts:
    """What validation adds up, line by line. `sample`: (number of its line among the filled ones, lengths) of rows."""

    positions: int
    filled: int = 0
    blank: int = 0
    failed: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    estimated: bool = False
    text_tokens: int = 0
    text_bytes: int = 0
    kinds: dict[tuple[str, str | None, str], "_Kind"] = field(default_factory=dict)
    sample: list[tuple[int, RowLengths]] = field(default_factory=list)
    every: int = 1

    @property
    def counted(self) -> bool:
        """Whether tokens of the next line are counted: it is one of the sample, or nothing is known yet of texts."""
        return self.filled % self.every == 0 or not self.text_bytes

    def add(self, lengths: LineLengths | None) -> None:
        """One more line, of which its rows are known, or that is blank."""
        if lengths is None:
            self.blank += 1
            return
        kept = self.filled % self.every == 0
        for length in lengths.prompts:
            tokens = self._tokens_of(length)
            new = max(1, new_token_room(tokens, self.positions, lengths.new_tokens))
            self.prompt_tokens += tokens
            self.new_tokens += new * lengths.choices
            self.rows += lengths.choices
            if kept:
                self.sample += [(self.filled, RowLengths(tokens, new))] * lengths.choices
        self.filled += 1
        while len(self.sample) > SAMPLE_ROWS and self.every <= self.filled:
            self.every *= 2
            self.sample = [(line, row) for line, row in self.sample if line % self.every == 0]

    def _tokens_of(self, length: PromptLength) -> int:
        """Tokens of a prompt, counted or estimated."""
        if length.tokens is None:
            self.estimated = True
            return max(1, round(length.nbytes * self.text_tokens / self.text_bytes))
        if length.nbytes:
            self.text_tokens += length.tokens
            self.text_bytes += length.nbytes
        return length.tokens

    def fail(self, line: Line, why: WrongLine) -> None:
        """One more line, which cannot be served."""
        self.filled += 1
        self.failed += 1
        # Where no field is to blame, the beginning of what is said tells kinds apart (`it is not JSON: ...`).
        key = why.code, why.field, str(why).partition(":")[0] if why.field is None else ""
        if key not in self.kinds and len(self.kinds) >= KINDS_MOST:
            key = why.code, None, ""
        kind = self.kinds.setdefault(key, _Kind(str(why)))
        kind.count += 1
        if len(kind.lines) < EXAMPLES:
            kind.lines.append(line.number)

    def result(self) -> Validation:
        """What was found; the most frequent errors first."""
        errors = [ErrorKind(*key[:2], kind.count, tuple(kind.lines), kind.message) for key, kind in self.kinds.items()]
        errors.sort(key=lambda kind: (-kind.count, kind.lines))
        sample = tuple(row for _, row in self.sample)
        counts = self.filled, self.blank, self.failed, self.rows, self.prompt_tokens, not self.estimated
        return Validation(*counts, self.new_tokens, tuple(errors), sample)


@dataclass(slots=True)
class _Kind:
    """Of one kind of errors: what is said of the first, how many there are, and the first lines."""

    message: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
