"""The model that the lm-evaluation-harness sees: what it scores, continues and refuses, against the engine itself."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lm_eval.api.registry import get_model

import flexref
from flexref.backend.protocol import CHUNK_TOKENS
from flexref.engine.request import Request
from flexref.engine.results import Stats
from flexref.engine.scoring import ScoredRow
from flexref.errors import PolicyError, PromptError
from flexref.harness import model as harness
from flexref.harness.model import FlexrefLM, request_of
from flexref.planner.advisor import Advisor
from flexref.quality.perplexity import perplexity, sample_text

TEXT = "It was a fine morning, and the two ladies walked out together; the king was not to be seen."
PLACED = {"rows_per_group": 4, "groups": 1}

TOKEN_BOUND = 64 * 256 * 2.0**-24
"""Of a log-probability: beside other rows a product of 256 terms may be summed up in another order, and no logit of the
built-in model exceeds 64."""


@pytest.fixture(scope="module")
def model() -> Iterator[FlexrefLM]:
    made = FlexrefLM("demo", device_mem_gib=0.2, host_mem_gib=0.2, **PLACED)
    yield made
    made.engine.close()


def requests(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=each) for each in arguments]


def scored(model: FlexrefLM, ids: list[int], first: int) -> tuple[float, bool]:
    (row,) = model.engine.score([ScoredRow(tuple(ids), first)]).rows
    return float(row.logprobs.sum()), bool(row.greedy.all())


def test_the_harness_finds_it_by_its_name() -> None:
    assert get_model("flexref") is FlexrefLM


@pytest.mark.parametrize(("context", "continuation"), [("The king", " said"), ("In the ", "beginning"), ("", TEXT)])
def test_a_continuation_has_the_engines_log_likelihood(model: FlexrefLM, context: str, continuation: str) -> None:
    whole, start = model.tok_encode(context + continuation), len(model.tok_encode(context.rstrip()))
    assert model.loglikelihood(requests((context, continuation)), True) == [scored(model, whole, start)]


def test_a_greedy_continuation_is_told_as_one(model: FlexrefLM) -> None:
    (output,) = model.engine.generate(["The king said"], Request(3)).outputs
    (_, greedy), (_, other) = model.loglikelihood(
        requests(("The king said", output.text), ("The king said", " " + "xylophone")), True
    )
    assert (greedy, other) == (True, False)


def test_many_requests_in_chunks_are_answered_in_their_order(model: FlexrefLM, monkeypatch: pytest.MonkeyPatch) -> None:
    words = TEXT.split()
    asked = requests(*((" ".join(words[:number]), " " + words[number]) for number in range(1, len(words))))
    together = model.loglikelihood(asked, True)
    monkeypatch.setattr(harness, "CHUNK_ROWS", 3)
    kept: dict[Any, Any] = {}
    hook = SimpleNamespace(add_partial=lambda attribute, request, answer: kept.update({(attribute, *request): answer}))
    monkeypatch.setattr(model, "cache_hook", hook)
    found = model.loglikelihood(asked, True)
    assert kept == {("loglikelihood", *each.args): answer for each, answer in zip(asked, found, strict=True)}
    alone = [answer for each in asked for answer in model.loglikelihood([each], True)]
    for answers in (found, alone):
        np.testing.assert_allclose(
            [logprob for logprob, _ in answers], [each[0] for each in together], atol=3 * TOKEN_BOUND
        )


def test_a_context_that_is_too_long_loses_its_oldest_tokens(model: FlexrefLM) -> None:
    long = TEXT * 40
    whole = model.tok_encode(long + " the")[-513:]
    assert model.loglikelihood(requests((long, " the")), True) == [scored(model, whole, 512)]
    with pytest.raises(PromptError, match=r"a continuation has \d+ tokens, the model reads 512 at once"):
        model.loglikelihood(requests(("It", long)), True)


@pytest.mark.parametrize("repeats", [1, 60])
def test_a_text_as_a_whole_has_the_likelihood_of_windows_that_score_each_token_once(
    model: FlexrefLM, repeats: int
) -> None:
    text = " ".join([TEXT] * repeats)
    (found,) = model.loglikelihood_rolling(requests((text,)), True)
    ids = model.tok_encode(text, add_special_tokens=False)
    if repeats == 1:
        ours = perplexity(model.engine, sample_text(model.engine, text, None, None))
        np.testing.assert_allclose(-found, ours.nats, rtol=1e-12)
        return
    expected = scored(model, [model.prefix_token_id, *ids[:512]], 1)[0]
    for first in range(512, len(ids), 512):
        last = min(first + 512, len(ids))
        expected += scored(model, ids[last - 513 : last], 513 - (last - first))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOKEN_BOUND * len(ids))


def test_texts_go_on_as_the_engine_lets_them(model: FlexrefLM) -> None:
    asked = requests(
        ("The king said", {"until": ["\n\n"], "max_gen_toks": 12}),
        ("In the beginning", {"until": " the", "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}),
        ("In the beginning", {"max_gen_toks": 8, "do_sample": True, "temperature": 0.8, "top_k": 5, "seed": 3}),
    )
    found = model.generate_until(asked, True)
    settings = [Request(12, stops=("\n\n",)), Request(20, stops=(" the",)), request_of(asked[2].args[1])]
    for each, request, text in zip(asked, settings, found, strict=True):
        (output,) = model.engine.generate([each.args[0]], request).outputs
        assert text == output.text
    assert " the" not in found[1]
    assert settings[2].sampling.top_k == 5


def test_a_prompt_that_is_too_long_for_its_new_tokens_loses_its_oldest_tokens(model: FlexrefLM) -> None:
    (text,) = model.generate_until(requests((TEXT * 40, {"max_gen_toks": 5})), True)
    (output,) = model.engine.generate([model.tok_encode(TEXT * 40)[-507:]], Request(5)).outputs
    assert text == output.text
    with pytest.raises(PromptError, match="512 new tokens leave no room for a context: the model reads 512"):
        model.generate_until(requests(("It", {"max_gen_toks": 512})), True)


def test_a_text_is_never_begun_twice(model: FlexrefLM) -> None:
    plain = model.tok_encode("It was", add_special_tokens=False)
    assert model.tok_encode("It was") == model.tok_encode("</s>It was") == [model.prefix_token_id, *plain]
    assert model.tok_encode("") == [model.prefix_token_id]


def test_without_a_path_there_is_no_model() -> None:
    with pytest.raises(PolicyError, match="--model_args must name a weight file, or the built-in model: path=demo"):
        FlexrefLM()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "x"}, "unknown model argument pretrained; known: path, backend"),
        ({"device": "cpu"}, "device and max_batch_size have no meaning here"),
        ({"max_batch_size": 8}, "device and max_batch_size have no meaning here"),
        ({"batch_size": "many"}, "batch_size must be a number of rows or auto, found 'many'"),
        ({"rows_per_group": 0}, "rows_per_group"),
        ({"max_length": 513}, "max_length must be a number of tokens from 1 to 512, found 513"),
    ],
)
def test_an_argument_that_there_is_not_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        FlexrefLM("demo", **arguments)


def settled_fields(made: FlexrefLM) -> dict[str, Any]:
    """The fields of `Policy` that a policy which is chosen for the model must keep."""
    settle = made.engine.session.settle
    assert isinstance(settle, Advisor)
    return settle.keep


def test_a_batch_size_is_rows_per_group() -> None:
    made = FlexrefLM("demo", batch_size="6")
    assert settled_fields(made) == {"rows_per_group": 6}
    made.engine.close()
    for value in (1, "1", "auto", None):
        made = FlexrefLM("demo", batch_size=value, groups=2, quantize_cache=True, row_invariant=False)
        assert settled_fields(made) == {"groups_per_block": 2, "cache_scheme": "int4", "row_invariant": False}
        made.engine.close()


def test_a_setting_of_a_generation_that_there_is_not_is_refused(model: FlexrefLM) -> None:
    with pytest.raises(PromptError, match="generation knows no num_beams, repetition_penalty; it knows until"):
        model.generate_until(requests(("It", {"num_beams": 2, "repetition_penalty": 1.2})), True)
    with pytest.raises(PromptError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "hello"}])


def test_a_report_says_what_was_measured(model: FlexrefLM) -> None:
    info = model.get_model_info()
    assert info["flexref_version"] == flexref.__version__
    assert (info["model_num_parameters"], info["model_scheme"], info["backend"]) == (7757568, "none", "numpy")


def test_endings_of_one_context_share_it_in_a_job_of_few_places(
    model: FlexrefLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come longest first, which tears the endings of a context apart: within a job they are put together again."""
    contexts = [" ".join([start, *TEXT.split() * 5]) for start in ("First", "Second", "Third", "Fourth", "Fifth")]
    endings = (" king", " king and the two ladies", " king and the two ladies were walking out", " queen")
    told = list[Stats]()
    score = model.engine.score

    def kept(rows: Any) -> Any:
        scores = score(rows)
        told.append(scores.stats)
        return scores

    monkeypatch.setattr(model.engine, "score", kept)
    asked = requests(*((context, ending) for ending in endings for context in contexts))
    found = model.loglikelihood(asked, True)
    shared = sum(len(model.tok_encode(context)) // CHUNK_TOKENS * CHUNK_TOKENS for context in contexts)
    assert shared >= len(contexts) * CHUNK_TOKENS
    assert [stats.shared_prefix_tokens for stats in told] == [(len(endings) - 1) * shared]
    assert found == [answer for each in asked for answer in model.loglikelihood([each], True)]
