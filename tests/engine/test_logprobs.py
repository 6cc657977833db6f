"""Log-probabilities of generated tokens: of the model's own distribution, for every token that a row has."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.errors import PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.sampling.settings import SamplingSettings
from flexref.testing import strategies as own


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job
@given(own.specs(layers=2), own.policies(), st.sampled_from((0.0, 0.7)), st.integers(1, 100), st.data())
def test_every_token_has_its_log_probability_and_the_most_probable_ones(
    model_file: Any, spec: ModelSpec, policy: Policy, temperature: float, top: int, data: st.DataObject
) -> None:
    rows = data.draw(own.token_rows(spec.vocabulary, rows=3, longest=5))
    logits: dict[tuple[int, int], Any] = {}

    def keep(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        logits.update(dict(zip(zip(numbers.tolist(), steps.tolist(), strict=True), values, strict=True)))

    request = Request(3, SamplingSettings(temperature, 5, 0.9, seed=1), logprobs=top)
    with load(model_file(spec), policy=policy) as engine:
        found = engine.generate(rows, request, on_logits=keep).outputs
        plain = engine.generate(rows, Request(3, request.sampling)).outputs
    assert [output.token_ids for output in found] == [output.token_ids for output in plain]
    assert all(output.logprobs is None for output in plain)
    for row, output in enumerate(found):
        assert output.logprobs is not None
        assert [known.chosen.token_id for known in output.logprobs] == output.token_ids
        for step, known in enumerate(output.logprobs):
            values = logits[row, step].astype(np.float64)
            exact = values - values.max() - np.log(np.exp(values - values.max()).sum())
            assert known.chosen.logprob == pytest.approx(exact[known.chosen.token_id], abs=1e-12)
            order = np.lexsort((np.arange(len(values)), -values))[:top]
            assert [token.token_id for token in known.top] == order.tolist()
            assert [token.logprob for token in known.top] == pytest.approx(exact[order].tolist(), abs=1e-12)


def test_tokens_come_with_their_text_also_when_they_end_the_row() -> None:
    with load("demo") as engine:
        output = engine.generate(["The king said"], Request(6, logprobs=2)).outputs[0]
    assert output.logprobs is not None
    assert output.text == "".join(known.chosen.text or "" for known in output.logprobs)
    assert output.to_json()["logprobs"][0] == {
        "token_id": output.token_ids[0],
        "logprob": output.logprobs[0].chosen.logprob,
        "text": output.logprobs[0].chosen.text,
        "top": [{"token_id": t.token_id, "logprob": t.logprob, "text": t.text} for t in output.logprobs[0].top],
    }


@pytest.mark.parametrize("wrong", [-1, 1.5, True])
def test_a_number_of_log_probabilities_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(PromptError, match="logprobs must be a number of tokens from 0"):
        Request(logprobs=wrong)
