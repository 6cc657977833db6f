"""Questions judged by the built-in model, beside log-likelihoods that are put together by hand."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.cli.show.report import prefixes_in_words
from flexref.engine.engine import Engine
from flexref.engine.scoring import ScoredRow
from flexref.errors import PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.quality.intervals import wilson
from flexref.quality.multiple_choice import judge
from flexref.quality.questions import Question


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with load("demo", policy=Policy(rows_per_group=8)) as engine:
        yield engine


def question(context: str, *labels: str, answer: int = 0, line: int = 1) -> Question:
    layout = "ending" if len(labels) > 1 else "last_word"
    return Question(f"q.jsonl, line {line}", layout, context, tuple(f" {label}" for label in labels), labels, answer)


@cache
def likelihood(engine: Engine, context: str, choice: str) -> float:
    assert engine.tokenizer is not None
    before, whole = engine.tokenizer.encode(context), engine.tokenizer.encode(context + choice)
    assert whole[: len(before)] == before
    (scored,) = engine.score([ScoredRow(tuple(whole), len(before))]).rows
    return float(scored.logprobs.sum())


CONTEXTS = ("The king said to his", "And it came to pass in the days of", "She opened the letter with trembling")
LABELS = ("servant", "hands", "the judges", "a", "brother, Go up", "xq zz")


@given(
    st.lists(st.tuples(st.sampled_from(CONTEXTS), st.permutations(LABELS), st.integers(0, 2)), min_size=1, max_size=4)
)
def test_the_most_probable_choice_is_the_answer_and_per_character_it_may_be_another(demo: Engine, asked: Any) -> None:
    questions = [question(context, *labels[:3], answer=answer) for context, labels, answer in asked]
    right = normalized = 0
    nats = 0.0
    for each in questions:
        sums = np.array([likelihood(demo, each.context, choice) for choice in each.choices])
        right += int(sums.argmax()) == each.answer
        normalized += int((sums / [len(label) for label in each.labels]).argmax()) == each.answer
        nats -= sums[each.answer]
    found = judge(demo, questions)
    assert (found.accuracy.right, found.accuracy.of) == (right, len(questions))
    assert found.normalized is not None
    assert found.normalized.right == normalized
    assert found.nats == pytest.approx(nats, rel=1e-5)
    figures = found.to_json()
    assert figures["accuracy"] == right / len(questions)
    assert figures["accuracy_ci95"] == list(wilson(right, len(questions)))


def test_a_last_word_is_right_if_greedy_generation_says_it(demo: Engine) -> None:
    from flexref.engine.request import Request

    context = "It was a fine morning, and the"
    said = demo.generate([context], Request(1)).outputs[0].text
    assert said is not None
    assert said.strip().isalpha()
    found = judge(demo, [question(context, said.strip()), question(context, "xylophone", line=2)])
    assert (found.accuracy.right, found.normalized, found.scores.scored_tokens > 3) == (1, None, True)
    assert "normalized_accuracy" not in found.to_json()
    assert found.to_json()["protocol"]["criterion"] == "greedy"


def test_a_context_that_is_too_long_loses_its_oldest_tokens_and_keeps_what_begins_a_text(demo: Engine) -> None:
    assert demo.tokenizer is not None
    long, seen = "word " * 700 + "the king said to his", []
    score = demo.score

    def watch(rows: Any, **options: Any) -> Any:
        seen.extend(rows)
        return score(rows, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "score", watch)
        found = judge(demo, [question(long, "servant", "men of Judah")])
    assert found.cut == 2
    whole = demo.tokenizer.encode(f"{long} servant")
    assert len(seen[0].token_ids) == 513, "all positions are used"
    assert seen[0].token_ids == (whole[0], *whole[-512:])
    assert seen[0].token_ids[seen[0].first :] == tuple(whole[len(demo.tokenizer.encode(long)) :])


def test_a_choice_that_fills_the_positions_is_refused_by_its_line(demo: Engine) -> None:
    with pytest.raises(PromptError, match=r"^q\.jsonl, line 7: a choice of \d+ tokens is too long for 512 positions"):
        judge(demo, [question("The", "word " * 600, "b", line=7)])


def test_tokens_that_context_and_choice_share_are_scored(demo: Engine) -> None:
    # A context that ends in a space: the space belongs to the choice's first token.
    spaced = Question(1, "ending", "The king said ", ("to", "unto"), ("to", "unto"), 0)
    plain = question("The king said", "to", "unto")
    assert judge(demo, [spaced]).nats == pytest.approx(judge(demo, [plain]).nats, rel=1e-6)


def test_the_choices_of_a_question_share_its_context(demo: Engine) -> None:
    """Whole chunks of it: what joins a choice to its context may be tokenized otherwise than the context's end."""
    assert demo.tokenizer is not None
    questions = [question(" ".join([context] * 20), *LABELS[:4]) for context in CONTEXTS]
    shared = [len(demo.tokenizer.encode(each.context)) // CHUNK_TOKENS * CHUNK_TOKENS for each in questions]
    stats = judge(demo, questions).scores.stats
    assert min(shared) > 0
    assert stats.shared_prefix_tokens == 3 * sum(shared)
    with load("demo", policy=Policy(rows_per_group=8, share_prefixes=False)) as engine:
        alone = judge(engine, questions)
    assert judge(demo, questions).to_json() == alone.to_json()
    assert stats.prompt_tokens + stats.shared_prefix_tokens == alone.scores.stats.prompt_tokens
    assert list(prefixes_in_words(alone.scores.stats)) == []
    (line,) = prefixes_in_words(stats)
    assert line == (
        f"shared prefixes: {stats.prompt_tokens} tokens of prompts read, {stats.shared_prefix_tokens} spared"
    )
