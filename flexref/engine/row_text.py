"""The text side of a row: token by token to text, and when an end of sequence or a stop string ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flexref.text.stop import StopMatcher
from flexref.text.stream import Detokenizer
from flexref.text.tokenizer import Tokenizer


@dataclass(slots=True)
class RowText:
    """Text of one growing row; without a tokenizer there is none, and only ends of sequence stop the row.

    Where no stop string is looked for, tokens are spelled when their text is asked for: a device may wait for `push`.
    """

    tokenizer: Tokenizer | None
    stops: Sequence[str]
    end_token_ids: Sequence[int]
    shown: int = 0
    _text: str = field(init=False, default="")
    _unspelled: list[int] = field(init=False, default_factory=list)
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
            self._unspelled.append(token_id)
            if self.stops:
                self._spell()
                self._look_into(self._detokenizer.pending)
        return "stop" if self._matcher.matched is not None else None

    @property
    def text(self) -> str:
        """What no later token can change of it."""
        self._spell()
        return self._text

    def finish(self, reason: str) -> str:
        """The row has ended for that reason: what was held back becomes text. The reason that its text tells.

        A row may be at its limit while a stop string that is whole waits for one that begins earlier.
        """
        self._spell()
        if self._detokenizer is not None and self._matcher.matched is None:
            self._text += self._matcher.push(self._detokenizer.finish())
            self._text += self._matcher.finish()
        return reason if self._matcher.matched is None else "stop"

    def _look_into(self, pending: str) -> None:
        """End with a stop string of a text that later tokens might change: they never come."""
        if pending:
            matcher = StopMatcher(self.stops)
            shown = matcher.push(pending)
            if matcher.matched is not None:
                self._text, self._matcher = shown, matcher

    def _spell(self) -> None:
        if self._detokenizer is None:
            return
        for token_id in self._unspelled:
            self._text += self._matcher.push(self._detokenizer.push(token_id))
        self._unspelled.clear()
