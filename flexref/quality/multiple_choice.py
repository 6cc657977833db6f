"""Questions judged by log-likelihood: rows to score, what counts as right, accuracies; it knows no file and no port."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from flexref.block.tracing.trace import Trace
from flexref.engine.scoring import Listener, ScoredRow, Scores
from flexref.errors import PromptError
from flexref.quality.intervals import wilson
from flexref.quality.perplexity import exponential, tokenizer_of
from flexref.quality.questions import Question
from flexref.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flexref.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Proportion:
    """So many of so many, with its interval (Wilson, 95 %)."""

    right: int
    of: int

    def to_json(self, name: str) -> dict[str, Any]:
        """The share and its interval under `name`."""
        return {name: self.right / self.of, f"{name}_ci95": list(wilson(self.right, self.of))}


@dataclass(frozen=True, slots=True)
class Judged:
    """How many questions were answered rightly; `normalized` by log-likelihood per character, None for a single choice.

    `nats` are those of the right answers together; `cut`: rows whose context lost its oldest tokens, for they were more
    than the model has positions for.
    """

    layout: str
    accuracy: Proportion
    normalized: Proportion | None
    nats: float
    cut: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        questions = self.accuracy.of
        per_answer = self.nats / questions
        figures: dict[str, Any] = {"layout": self.layout, "questions": questions, **self.accuracy.to_json("accuracy")}
        if self.normalized is not None:
            figures.update(self.normalized.to_json("normalized_accuracy"))
        return {
            **figures,
            "answer_nats": per_answer,
            "answer_perplexity": exponential(per_answer),
            "tokens": self.scores.scored_tokens,
            "protocol": {
                "shots": 0,
                "criterion": "greedy" if self.normalized is None else "most probable choice",
                "normalized_by": None if self.normalized is None else "characters",
                "rows": len(self.scores.rows),
                "rows_cut": self.cut,
            },
        }


def judge(
    engine: "Engine",
    questions: Sequence[Question],
    on_rows: Callable[[int], None] | None = None,
    trace: Trace | None = None,
) -> Judged:
    """Score every choice of every question after its context, and count what is right.

    A single choice is right if every token of it is the most probable one. Of several, the one with the greatest
    log-likelihood is the answer, of equals the first; or, length-normalized, the greatest per character.
    """
    tokenizer, spec = tokenizer_of(engine), engine.file.spec
    rows, cut = [], 0
    for question in questions:
        for choice in question.choices:
            row, shortened = _row(tokenizer, question, choice, spec.positions, spec.bos_token_id)
            rows.append(row)
            cut += shortened
    scores = engine.score(rows, listener=Listener(on_rows=on_rows, trace=trace))
    left = iter(scores.rows)
    right = normalized = 0
    nats = 0.0
    for question in questions:
        found = [next(left) for _ in question.choices]
        likelihoods = np.array([scored.logprobs.sum() for scored in found])
        nats -= float(likelihoods[question.answer])
        if len(found) == 1:
            right += bool(found[0].greedy.all())
            continue
        right += int(likelihoods.argmax()) == question.answer
        lengths = np.array([len(label) for label in question.labels])
        normalized += int((likelihoods / lengths).argmax()) == question.answer
    several = len(questions[0].choices) > 1
    accuracy = Proportion(right, len(questions))
    by_length = Proportion(normalized, len(questions)) if several else None
    return Judged(questions[0].layout, accuracy, by_length, nats, cut, scores)


def _row(
    tokenizer: Tokenizer, question: Question, choice: str, positions: int, begin: int | None
) -> tuple[ScoredRow, bool]:
    """The tokens of a context and a choice, and whether the context had to be cut.

    They are tokenized together; scored are the tokens from the first on that is not the context's alone.
    """
    context, whole = tokenizer.encode(question.context), tokenizer.encode(question.context + choice)
    first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, whole, strict=False)))
    place = question.place
    if not 1 <= first < len(whole):
        raise PromptError(f"{place}: of the {len(whole)} tokens of context and choice none has a context and is scored")
    too_many = len(whole) - 1 - positions
    if too_many <= 0:
        return ScoredRow(tuple(whole), first), False
    # What begins a text stays; what stands after it goes.
    kept = 1 if whole[0] == begin else 0
    if first - too_many < max(1, kept):
        raise PromptError(f"{place}: a choice of {len(whole) - first} tokens is too long for {positions} positions")
    return ScoredRow((*whole[:kept], *whole[kept + too_many :]), first - too_many), True
