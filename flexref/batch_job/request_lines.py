"""A job's lines read as requests: the rows that each asks for, or at once the answer why it cannot be served.

It knows a model's sizes, tokenizer and chat template, and no engine. Prompts become token ids here, so that what is
said of one does not depend on where it stands in an engine's stream.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.lines.answer_lines import failed
from flexref.batch_job.lines.asked_body import AskedBody, BodyReader
from flexref.batch_job.lines.asked_line import AskedLine
from flexref.batch_job.lines.body_fields import URLS
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.json_line import object_in
from flexref.batch_job.lines.prompt_tokens import PromptLength, PromptReader, ServedModel
from flexref.batch_job.lines.wrong_line import (
    DUPLICATE_CUSTOM_ID,
    INVALID_LINE,
    INVALID_VALUE,
    MISSING_FIELD,
    NO_TOKENIZER,
    UNKNOWN_FIELD,
    UNSUPPORTED_FIELD,
    WrongLine,
)
from flexref.engine.request import RowRequest
from flexref.files import LONGEST_LINE_BYTES
from flexref.json_types.values import shown
from flexref.text.prompt_lines import LONGEST_ID
from flexref.units import is_integer

ENVELOPE = ("custom_id", "method", "url", "body")
"""What a line of the OpenAI batch format has, all of it."""

CHOICE_BITS = 44
"""Of what a row draws by: its line below these bits, its place among the rows of its line above."""

MOST_ROWS = 1 << 12
"""Bounds the rows of a line: its answer holds them all."""

MOST_ANSWER_BYTES = 200_000_000
"""Bounds the answer of a line as it is estimated, with room to the longest record of a journal."""

TOKEN_BYTES, LOGPROB_BYTES = 8, 96
"""Of an answer: those that a token takes, and the log-probability of one with its name and bytes."""


class LineLengths(NamedTuple):
    """How long the rows of a line are: its prompts, the choices of each, and the most new tokens of a row."""

    prompts: tuple[PromptLength, ...]
    choices: int
    new_tokens: int


class RequestReader:
    """Reads lines as requests for one model; the same line is read the same at any time, on any machine."""

    def __init__(self, model: ServedModel, defaults: Defaults, *, as_json: bool) -> None:
        """`as_json`: whether lines are JSON objects (`Scan.as_json`); else each is a prompt."""
        self._as_json, self._defaults, self._model = as_json, defaults, model
        self._bodies = BodyReader(defaults, model.positions)
        self._prompts = PromptReader(model)

    def read(self, line: Line) -> AskedLine | LineAnswer | None:
        """The line as a request, or the answer why it cannot be served; None if it is blank."""
        if line.blank:
            return None
        custom_id: str | int | None = None
        try:
            record = self._record(line)
            custom_id = _id_of(record)
            body = self._body(record, line)
            return self._asked(line, custom_id, body, self._prompts_of(body))
        except WrongLine as why:
            return failed(line, custom_id, why)

    def lengths(self, line: Line, *, counted: bool) -> LineLengths | None:
        """How long the rows of the line are; None if it is blank. Raises `WrongLine` where `read` answers why not.

        Unless `counted`, no tokens are made of texts that are certainly short enough.
        """
        if line.blank:
            return None
        record = self._record(line)
        _id_of(record)
        body = self._body(record, line)
        prompts = tuple(self._prompts.length(prompt, body, counted) for prompt in self._prompts_of(body))
        return LineLengths(prompts, body.choices, body.request.max_new_tokens)

    def _record(self, line: Line) -> dict[str, Any]:
        """The line as an object; a text is one with a `prompt`."""
        if line.digest is not None:
            raise WrongLine(f"it is longer than the {LONGEST_LINE_BYTES} bytes that are read", INVALID_LINE)
        return object_in(line.data) if self._as_json else {"prompt": _text(line.data)}

    def _body(self, record: Mapping[str, Any], line: Line) -> AskedBody:
        return self._enveloped(record, line) if _is_enveloped(record) else self._bodies.plain(record)

    def _prompts_of(self, body: AskedBody) -> Sequence[object]:
        """The prompts of a body that can be served, as far as it is known without making tokens of them."""
        if body.request.stops and self._model.tokenizer is None:
            raise WrongLine("stop texts need a tokenizer, and the model has none", NO_TOKENIZER, "stop")
        prompts = self._prompts.prompts_of(body)
        if len(prompts) * body.choices > MOST_ROWS:
            words = f"{len(prompts)} prompts with {body.choices} choices each are more rows than the {MOST_ROWS}"
            raise WrongLine(f"{words} that a line may have; divide it", INVALID_VALUE, "prompt")
        self._check_answer(body, len(prompts) * body.choices)
        return prompts

    def _check_answer(self, body: AskedBody, rows: int) -> None:
        """`WrongLine` if log-probabilities would make the answer too long: it is held, and kept in one record."""
        if body.logprobs is None:
            return
        tokens = rows * min(body.request.max_new_tokens, self._model.positions)
        found = tokens * (TOKEN_BYTES + (body.logprobs + 2) * LOGPROB_BYTES)
        if found > MOST_ANSWER_BYTES:
            words = f"`logprobs` of up to {tokens} tokens may take {found} bytes, at most {MOST_ANSWER_BYTES} are taken"
            raise WrongLine(f"{words} of an answer; divide it", INVALID_VALUE, "logprobs")

    def _enveloped(self, record: Mapping[str, Any], line: Line) -> AskedBody:
        """What a line of the OpenAI batch format asks for."""
        if line.duplicate_of is not None:
            found = shown(record["custom_id"])
            words = f"`custom_id` {found} stands in line {line.duplicate_of}, too; each must be there once"
            raise WrongLine(words, DUPLICATE_CUSTOM_ID, "custom_id")
        for name in record:
            if name not in ENVELOPE:
                words = f"unknown field {shown(name)}; a line has the fields {', '.join(ENVELOPE)}"
                raise WrongLine(words, UNKNOWN_FIELD, name[:LONGEST_ID])
        for name in ENVELOPE:
            if name not in record:
                words = f"`{name}` is missing; a line has the fields {', '.join(ENVELOPE)}"
                raise WrongLine(words, MISSING_FIELD, name)
        method, url, body = record["method"], record["url"], record["body"]
        if method != "POST":
            raise WrongLine(f'`method` must be "POST", found {shown(method)}', INVALID_VALUE, "method")
        if not isinstance(url, str) or url not in URLS:
            raise WrongLine(f"`url` must be {' or '.join(URLS)}, found {shown(url)}", UNSUPPORTED_FIELD, "url")
        if not isinstance(body, dict):
            raise WrongLine(f"`body` must be an object, found {shown(body)}", INVALID_VALUE, "body")
        return self._bodies.read(body, url)

    def _asked(self, line: Line, custom_id: str | int | None, body: AskedBody, prompts: Sequence[object]) -> AskedLine:
        """The rows of a body: all choices of the first prompt, then those of the next one."""
        # A seed of the body's own gives the same wherever the line stands.
        first = 0 if body.seeded else line.number - 1
        ids = [self._prompts.token_ids(prompt, body) for prompt in prompts]
        rows = tuple(
            RowRequest(prompt, body.request, draw_number=first + (index << CHOICE_BITS))
            for index, prompt in enumerate(prompt for prompt in ids for _ in range(body.choices))
        )
        echoed = self._echoed(prompts, ids) if body.echo else ()
        return AskedLine(line, custom_id, body, rows, echoed, self._model.tokenizer, self._defaults.created)

    def _echoed(self, prompts: Sequence[object], ids: Sequence[tuple[int, ...]]) -> tuple[str | tuple[int, ...], ...]:
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            return tuple(ids)
        pairs = zip(prompts, ids, strict=True)
        return tuple(prompt if isinstance(prompt, str) else tokenizer.decode(own) for prompt, own in pairs)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongLine(f"it is not UTF-8: {error.reason}", INVALID_LINE) from error


def _is_enveloped(record: Mapping[str, Any]) -> bool:
    """Whether it is a line of the OpenAI batch format, or is meant to be one."""
    return any(name in record for name in ENVELOPE)


def _id_of(record: Mapping[str, Any]) -> str | int | None:
    return _custom_id(record) if _is_enveloped(record) else _plain_id(record)


def _custom_id(record: Mapping[str, Any]) -> str:
    found = record.get("custom_id")
    if found is None:
        raise WrongLine("`custom_id` is missing; every line needs one of its own", MISSING_FIELD, "custom_id")
    if not isinstance(found, str) or not found or len(found) > LONGEST_ID:
        words = f"`custom_id` must be text of 1 to {LONGEST_ID} characters, found {shown(found)}"
        raise WrongLine(words, INVALID_VALUE, "custom_id")
    return found


def _plain_id(record: Mapping[str, Any]) -> str | int | None:
    found = record.get("id")
    if (
        found is None
        or (is_integer(found) and abs(found) < 1 << 63)
        or (isinstance(found, str) and len(found) <= LONGEST_ID)
    ):
        return found
    words = f"`id` must be an integer of 64 bits or text of at most {LONGEST_ID} characters, found {shown(found)}"
    raise WrongLine(words, INVALID_VALUE, "id")
