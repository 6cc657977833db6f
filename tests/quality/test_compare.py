"""Two models on one text: divergence, agreement and hidden states against what whole arrays give."""

import json
import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind
from flexref.check.models import random_tensors
from flexref.engine.engine import Engine
from flexref.engine.scoring import Listener, ScoredRow
from flexref.errors import PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.quality import compare
from flexref.quality.compare import Divergence, HiddenErrors, HiddenStates, batches, check_comparable
from flexref.quality.intervals import Paired
from flexref.quality.perplexity import Protocol, sample_text
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file
from flexref.storage.writer import WeightFileWriter
from flexref.testing import strategies as own

TEXT = "In the beginning God created the heaven and the earth. And the king said to his servants, Go up. " * 6
SPEC = ModelSpec("tiny", 8192, 80, 32, 32, 3, 2, 64)

Written = Callable[..., str]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Path of a small random model with the built-in model's tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), open_weight_file(resolve("demo")).tokenizer_json

    def write(name: str, scheme: str = "none", seed: int = 0, spec: ModelSpec = SPEC, document: Any = tokenizer) -> str:
        path = folder / f"{name}.h5"
        group_size = None if scheme == "none" else 64
        with WeightFileWriter(path, spec, scheme, group_size, "float32", document) as writer:
            for tensor, values in random_tensors(writer.tensors, seed).items():
                writer.write(tensor, values)
        return str(path)

    return write


@pytest.fixture(scope="module")
def pair(written: Written) -> Iterator[tuple[Engine, Engine]]:
    first, second = written("first"), written("second", "int4")
    with load(first, policy=Policy(rows_per_group=2)) as a, load(second, policy=Policy(rows_per_group=3)) as b:
        yield a, b


def states(engine: Engine, rows: Any) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    engine.score(rows, listener=Listener(on_hidden=lambda stage, _, x: found.setdefault(stage.name, []).append(x)))
    return {stage: np.concatenate(parts).astype(np.float64) for stage, parts in found.items()}


@pytest.mark.parametrize("kept_bytes", [1 << 28, 1])
def test_figures_are_those_of_whole_arrays_however_rows_are_cut_into_batches(
    pair: tuple[Engine, Engine], kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_text(pair[0], TEXT, 20, 10)
    monkeypatch.setattr(compare, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(compare, "PIECE_BYTES", 1 << 18)
    done: list[int] = []
    found = compare.compare(*pair, sample, done.append)
    assert sum(done) == len(sample.rows)
    assert (len(done) == 1) == (kept_bytes > 1)
    scores = [engine.score(sample.rows, keep_logits=True).rows for engine in pair]
    first, second = (np.concatenate([row.distribution() for row in rows]) for rows in scores)
    divergence = (np.exp(first) * (first - second)).sum(axis=1)
    assert found.kl_mean == pytest.approx(divergence.mean(), rel=1e-4)
    assert found.kl_p99 == pytest.approx(np.quantile(divergence, 0.99), rel=1e-4)
    assert found.same_top == pytest.approx((first.argmax(1) == second.argmax(1)).mean())
    sums = [-sum(row.logprobs.sum() for row in rows) for rows in scores]
    assert found.nats == pytest.approx(sums, rel=1e-6)
    assert found.tokens == sample.protocol.tokens == len(divergence)
    figures = found.to_json()
    assert figures["perplexity_difference"] == pytest.approx(figures["perplexity_b"] - figures["perplexity_a"])
    low, high = figures["perplexity_difference_ci95"]
    assert low < figures["perplexity_difference"] < high
    if kept_bytes == 1:  # the first token of every row alone
        assert found.hidden_tokens == len(sample.rows)
        return
    ours, theirs = (states(engine, sample.rows) for engine in pair)
    assert [layer.stage for layer in found.layers] == list(ours)
    for layer in found.layers:
        apart, size = theirs[layer.stage] - ours[layer.stage], ours[layer.stage]
        assert layer.overall == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(size), rel=1e-4, abs=1e-9)
        each = np.linalg.norm(apart, axis=1) / np.linalg.norm(size, axis=1)
        assert layer.median_token == pytest.approx(np.median(each), rel=1e-3, abs=1e-9)
    assert found.hidden_tokens == sum(len(row.token_ids) - 1 for row in sample.rows)


def test_of_a_batch_logits_are_kept_once(pair: tuple[Engine, Engine]) -> None:
    rows = sample_text(pair[0], TEXT, 20, 10).rows
    logits_bytes = sum(row.scored for row in rows) * 4 * SPEC.vocabulary
    compare.Comparing(*pair).add(rows)
    tracemalloc.start()
    try:
        compare.Comparing(*pair).add(rows)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.5 * logits_bytes


def test_a_perplexity_beyond_all_numbers_is_none() -> None:
    protocol = Protocol(1, 1, 2, 1, "first", 2, 1, 1.0, 0)
    paired = Paired(math.inf, (math.nan, math.inf), 2)
    found = compare.Comparison(1, 0.0, 0.0, 0.0, 1.0, (1.0, 1e4), paired, (), 0, protocol).to_json()
    names = ("perplexity_b", "perplexity_difference", "perplexity_difference_ci95", "perplexity_ratio")
    assert [found[name] for name in names] == [None] * 4
    json.dumps(found, allow_nan=False)


def test_a_model_is_not_far_from_itself(pair: tuple[Engine, Engine]) -> None:
    found = compare.compare(pair[0], pair[0], sample_text(pair[0], TEXT, 20, 10))
    assert (found.kl_mean, found.kl_p99, found.kl_max, found.same_top) == (0, 0, 0, 1)
    assert found.paired.difference == 0
    assert {(layer.overall, layer.median_token) for layer in found.layers} == {(0, 0)}


@given(st.integers(1, 6), st.integers(1, 30), st.data())
def test_the_divergence_is_never_negative_and_that_of_whole_distributions(
    tokens: int, vocabulary: int, data: st.DataObject
) -> None:
    ours, theirs = (data.draw(own.arrays((tokens, vocabulary), kinds=("normal", "constant", "zero"))) for _ in "ab")
    normalizers = [np.log(np.exp(logits.astype(np.float64)).sum(axis=1)) for logits in (ours, theirs)]
    running, width = Divergence(ours, normalizers[0]), data.draw(st.integers(1, vocabulary))
    for first_id in range(0, vocabulary, width):
        running.add(0, first_id, theirs[:, first_id : first_id + width])
    first, second = (
        logits - normalizer[:, None] for logits, normalizer in zip((ours, theirs), normalizers, strict=True)
    )
    expected = (np.exp(first) * (first - second)).sum(axis=1)
    found = running.total(normalizers[1])
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-12)
    assert (found >= 0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 3))
def test_sampled_hidden_states_are_the_same_tokens_of_both_however_rows_are_grouped(
    lengths: list[int], step: int, rows_per_group: int
) -> None:
    stage, numbers = Stage(StageKind.LAYER, 0, ()), np.repeat(np.arange(len(lengths)), lengths)
    ours, theirs = (np.random.default_rng(seed).normal(size=(len(numbers), 3)).astype(np.float32) for seed in (0, 1))
    kept, errors = HiddenStates(step), HiddenErrors()
    kept.keep(stage, numbers, ours)
    for first in range(0, len(lengths), rows_per_group):
        group = (numbers >= first) & (numbers < first + rows_per_group)
        errors.against(kept)(stage, numbers[group], theirs[group])
    sampled = np.concatenate([np.flatnonzero(numbers == row)[::step] for row in range(len(lengths))])
    apart = (theirs.astype(np.float64) - ours)[sampled]
    (found,) = errors.by_stage()
    assert found.overall == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(ours[sampled]), rel=1e-6)
    assert not kept.states, "what was compared is let go"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 100))
def test_batches_hold_all_rows_in_order_within_the_bound_or_one_row(lengths: list[int], bound: int) -> None:
    rows = [ScoredRow((0,) * (length + 1)) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "KEPT_BYTES", bound)
        found = list(batches(rows, 5))
    assert [row for batch in found for row in batch] == rows
    assert all(len(batch) == 1 or sum(5 * row.scored for row in batch) <= bound for batch in found)
    assert all(batch for batch in found)


def test_models_of_other_depth_are_compared_but_for_hidden_states(
    pair: tuple[Engine, Engine], written: Written
) -> None:
    with load(written("shallow", spec=ModelSpec("shallow", 8192, 80, 32, 32, 1, 2, 64))) as shallow:
        found = compare.compare(pair[0], shallow, sample_text(pair[0], TEXT, 20, 10))
    assert (found.layers, found.hidden_tokens) == ((), 0)
    assert found.kl_mean > 0


def test_models_that_have_nothing_in_common_are_refused(
    pair: tuple[Engine, Engine], written: Written, model_file: Any
) -> None:
    small = model_file(ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64))
    with load(small) as other, pytest.raises(PromptError, match="vocabularies of 8192 and 90 tokens"):
        check_comparable(pair[0], other, TEXT)
    document = open_weight_file(resolve("demo")).tokenizer_json
    assert document is not None
    changed = document.replace(b'"type":"TemplateProcessing"', b'"type":"TemplateProcessing" ')
    with load(written("same", document=changed)) as same:
        check_comparable(pair[0], same, TEXT)
    with load(written("bare", document=None)) as bare, pytest.raises(PromptError, match="holds no tokenizer"):
        check_comparable(pair[0], bare, TEXT)
    with pytest.MonkeyPatch.context() as patch:
        assert pair[1].tokenizer is not None
        patch.setattr(pair[1].tokenizer, "encode", lambda text: [2, 3])
        with pytest.raises(PromptError, match="divide the text differently"):
            check_comparable(*pair, TEXT)
    assert Path(pair[0].file.path).exists()
