"""Answers as lines: completion and chat objects and error records of the OpenAI batch format, always the same bytes.

It knows no engine and no clock. Keys stand in the order of the fields here; floats are as short as tells them apart.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.lines.token_logprobs import ChatLogprobs, CompletionLogprobs
from flexref.batch_job.lines.wrong_line import WrongLine

LONGEST_WORDS = 1000
"""Bounds what is said of a failed line, in characters; a chat template may say anything."""

ENCODER = msgspec.json.Encoder()


class Usage(msgspec.Struct):
    """Tokens of a request: of every prompt once, and those generated for all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(msgspec.Struct):
    """One completion. `token_ids` is there for models without a tokenizer, whose `text` is empty."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: str
    token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct):
    """The body of a response of /v1/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(msgspec.Struct):
    """What the model says."""

    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One of its answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    """The body of a response of /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FailedRequest(msgspec.Struct):
    """What is wrong with a request, as an API's error says it."""

    message: str
    type: str
    param: str | None
    code: str


class FailedBody(msgspec.Struct):
    """The body of a response with the status 400."""

    error: FailedRequest


class LineFailure(msgspec.Struct):
    """The same, as a batch's list of errors says it, with the line's number."""

    code: str
    message: str
    param: str | None
    line: int


class Response(msgspec.Struct):
    """A response by the status that HTTP would have."""

    status_code: int
    request_id: str
    body: Completion | ChatCompletion | FailedBody


class AnswerRecord(msgspec.Struct):
    """One line of the output, or of the errors."""

    id: str
    custom_id: str | int | None
    response: Response
    error: LineFailure | None


class AnswerIds:
    """Names of an answer and its parts, which come of the line's number and bytes alone."""

    def __init__(self, line: Line) -> None:
        self.request_hash = line.request_hash
        # Equal lines have the same hash; with its number each answer has a name of its own.
        placed = xxh3_64_intdigest(self.request_hash.to_bytes(8, "little"), seed=line.number)
        self.own = f"{placed:016x}{self.request_hash:016x}"


def answered(
    line: Line, custom_id: str | int | None, body: Completion | ChatCompletion, own_id: AnswerIds
) -> LineAnswer:
    """The answer of a line that was served."""
    return _line_answer(line, custom_id, Response(200, f"req_{own_id.own}", body), None, own_id)


def failed(line: Line, custom_id: str | int | None, why: WrongLine) -> LineAnswer:
    """The answer of a line that could not be served: one line of words, in the response's body and as the error."""
    own_id, words = AnswerIds(line), f"line {line.number}: {' '.join(str(why).split())}"[:LONGEST_WORDS]
    body = FailedBody(FailedRequest(words, "invalid_request_error", why.field, why.code))
    error = LineFailure(why.code, words, why.field, line.number)
    return _line_answer(line, custom_id, Response(400, f"req_{own_id.own}", body), error, own_id)


def _line_answer(
    line: Line, custom_id: str | int | None, response: Response, error: LineFailure | None, own_id: AnswerIds
) -> LineAnswer:
    data = encoded_line(AnswerRecord(f"batch_req_{own_id.own}", custom_id, response, error))
    name = None if custom_id is None else str(custom_id)
    usage = response.body.usage if error is None and not isinstance(response.body, FailedBody) else Usage(0, 0, 0)
    return LineAnswer(
        line.number,
        name,
        own_id.request_hash,
        error is not None,
        data,
        usage.prompt_tokens,
        usage.completion_tokens,
    )


def encoded_line(value: Any) -> bytes:
    """`value` as JSON in UTF-8 on one line."""
    return ENCODER.encode(value)
