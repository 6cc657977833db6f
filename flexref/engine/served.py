"""A request as it is served: its row, its growing text, and the output that comes of it; it knows no engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexref.architecture.spec import ModelSpec
from flexref.block.rows import Row
from flexref.engine.request import Request, RowRequest, as_prompt, own_request
from flexref.engine.results import ChosenToken, Output
from flexref.engine.row_text import RowText
from flexref.errors import PromptError, how_many
from flexref.text.prompts import Prompt, new_token_room, to_token_ids
from flexref.text.tokenizer import Tokenizer
from flexref.units import is_integer

DRAW_NUMBER_MOST = (1 << 63) - 1
"""Bounds the number that a row draws by: arrays of them have 64 bits with a sign."""


@dataclass(slots=True)
class Served:
    """A row that waits or is under way, with what its output needs."""

    row: Row
    prompt: Prompt
    request: Request
    text: RowText

    def output(self, reason: str, logprobs: list[ChosenToken] | None) -> Output:
        """What comes of it, once it has ended for that reason."""
        row, prompt = self.row, self.prompt
        given = prompt.text if prompt.text is not None else list(prompt.token_ids or ())
        shown = None if self.text.tokenizer is None else self.text.text
        cut = reason == "length" and row.limit < self.request.max_new_tokens
        return Output(given, shown, row.tokens, reason, len(row.prompt), logprobs, prompt.record_id, cut)


def serve(asked: RowRequest, number: int, spec: ModelSpec, tokenizer: Tokenizer | None) -> Served:
    """Request number `number`, from 0 on, for a model. Raises `PromptError` if it cannot be served."""
    place = f"prompt {number + 1}"
    if not isinstance(asked, RowRequest):
        raise PromptError(f"request {number + 1} must be a RowRequest, found {asked!r}")
    prompt = as_prompt(asked.prompt, number + 1)
    request = own_request(asked.request, prompt, number + 1)
    if request.stops and tokenizer is None:
        raise PromptError("stop strings need a tokenizer, and the model has none")
    most = request.max_new_tokens
    ids = to_token_ids(prompt, tokenizer, spec.vocabulary, spec.positions, most, number + 1)
    limit = new_token_room(len(ids), spec.positions, most)
    if len(asked.generated) >= limit:
        raise PromptError(f"{place}: {len(asked.generated)} tokens are generated already, of {limit}")
    if any(not 0 <= token < spec.vocabulary for token in asked.generated):
        raise PromptError(f"{place}: a token that is generated already is no id below {spec.vocabulary}")
    text = RowText(tokenizer, request.stops, () if request.ignore_eos else spec.eos_token_ids)
    for token in asked.generated:
        if text.push(token) is not None:
            raise PromptError(f"{place}: the tokens that are generated already end the row")
    row = Row(number, ids, limit, list(asked.generated), sampling=request.sampling, logprobs=request.logprobs)
    row.may_stop = bool(text.stops or text.end_token_ids)
    if asked.draw_number is not None:
        if not is_integer(asked.draw_number) or not 0 <= asked.draw_number <= DRAW_NUMBER_MOST:
            raise PromptError(f"{place}: draw_number must be from 0 to {DRAW_NUMBER_MOST}, found {asked.draw_number!r}")
        row.draw_number = asked.draw_number
    return Served(row, prompt, request, text)


def notice_of_cut_rows(rows: Sequence[Served], spec: ModelSpec) -> str:
    """What to say if rows reach the model's last position before they have all the tokens asked for; else nothing."""
    cut = [served for served in rows if served.row.limit < served.request.max_new_tokens]
    if not cut:
        return ""
    limits = [served.row.limit for served in cut]
    least, most = min(limits), max(limits)
    room = f"{most}" if least == most else f"{least} to {most}"
    return (
        f"{len(limits)} of {how_many(len(rows), 'row')} may have at most {room} new tokens, not "
        f"{cut[0].request.max_new_tokens}: the model has {spec.positions} positions"
    )
