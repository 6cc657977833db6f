"""The text side of a row: token by token to text, and when an end of sequence or a stop string ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flexref.text.stop import StopMatcher
from flexref.text.stream import Detokenizer
from flexref.text.tokenizer import Tokenizer


@dataclass(slots=True)
class RowText:
    """Text of one growing row; without a tokenizer there is none, and only ends of sequence stop the row."""

    tokenizer: Tokenizer | None
    stops: Sequence[str]
    end_token_ids: Sequence[int]
    text: str = ""
    shown: int = 0
    _detokenizer: Detokenizer | None = field(init=False, default=None)
    _matcher: StopMatcher = field(init=False)

    def __post_init__(self) -> None:
        self._matcher = StopMatcher(self.stops)
        if self.tokenizer is not None:
            self._detokenizer = Detokenizer(self.tokenizer)

    def push(self, token_id: int) -> str | None:
        """Take one more token; `stop` if the row ends with it, else None."""
        if token_id in self.end_token_ids:
            return "stop"
        if self._detokenizer is not None:
            self.text += self._matcher.push(self._detokenizer.push(token_id))
        return "stop" if self._matcher.matched is not None else None

    def finish(self) -> None:
        """The row has ended: what was held back becomes text."""
        if self._detokenizer is not None and self._matcher.matched is None:
            self.text += self._matcher.push(self._detokenizer.finish())
            self.text += self._matcher.finish()
