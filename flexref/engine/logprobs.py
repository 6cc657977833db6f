"""Log-probabilities of generated tokens and of those that were as probable; it knows no row's end and no port."""

import numpy as np
import numpy.typing as npt

from flexref.engine.next_tokens import NextTokens
from flexref.engine.results import ChosenToken, TokenLogprob
from flexref.text.tokenizer import Tokenizer


class LogprobRecorder:
    """Collects, for every row of a job, what is known of each of its tokens; `on_choice` is that of a `Watch`.

    The distribution is the model's own: before temperature, top-k and top-p.
    """

    def __init__(self, rows: int, top: int, tokenizer: Tokenizer | None) -> None:
        self.tokens: list[list[ChosenToken]] = [[] for _ in range(rows)]
        self._top, self._tokenizer = top, tokenizer

    def on_choice(
        self, numbers: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]
    ) -> None:
        """See `engine.watch.OnChoice`."""
        found = NextTokens(chosen, min(self._top, logits.shape[1]))
        found.push(0, 0, logits)
        columns = (numbers, chosen, found.logprobs, found.top_ids, found.top_logprobs)
        for number, token_id, logprob, ids, logprobs in zip(*(column.tolist() for column in columns), strict=True):
            top = [self._token(*pair) for pair in zip(ids, logprobs, strict=True)]
            self.tokens[number].append(ChosenToken(self._token(token_id, logprob), top))

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        text = None if self._tokenizer is None else self._tokenizer.decode([token_id], skip_special=False)
        return TokenLogprob(token_id, logprob, text)
