"""Log-probabilities of generated tokens and of those that were as probable; it knows no row's end and no port."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flexref.engine.next_tokens import NextTokens
from flexref.engine.results import ChosenToken, TokenLogprob
from flexref.text.tokenizer import Tokenizer


class LogprobRecorder:
    """Collects, for rows that ask for it, what is known of each of their tokens; `on_choice` is that of a `Watch`.

    The distribution is the model's own: before temperature, top-k and top-p.
    """

    def __init__(self, tops: Mapping[int, int], tokenizer: Tokenizer | None) -> None:
        """`tops`: of how many most probable tokens each row that is under way wants to know, by its number."""
        self._tops, self._tokenizer = tops, tokenizer
        self._tokens: dict[int, list[ChosenToken]] = {}

    def take(self, number: int) -> list[ChosenToken]:
        """What was collected for the row, which is forgotten."""
        return self._tokens.pop(number, [])

    def on_choice(
        self, numbers: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]
    ) -> None:
        """See `block.watch.OnChoice`."""
        tops = np.array([self._tops.get(number, 0) for number in numbers.tolist()], np.int64)
        some = np.flatnonzero(tops)
        found = NextTokens(chosen[some], min(int(tops.max()), logits.shape[1]))
        found.push(0, 0, logits[some])
        columns = (numbers[some], chosen[some], tops[some], found.logprobs, found.top_ids, found.top_logprobs)
        for number, token_id, top, logprob, ids, logprobs in zip(*(column.tolist() for column in columns), strict=True):
            likely = [self._token(*pair) for pair in zip(ids[:top], logprobs[:top], strict=True)]
            self._tokens.setdefault(number, []).append(ChosenToken(self._token(token_id, logprob), likely))

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        text = None if self._tokenizer is None else self._tokenizer.token_text(token_id)
        return TokenLogprob(token_id, logprob, text)
