"""The network that trains the built-in model, against transformers on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")
OPTForCausalLM = pytest.importorskip("transformers").OPTForCausalLM

from builtin import packed, train  # noqa: E402
from builtin.network import Shape  # noqa: E402

TINY = Shape(vocabulary=64, width=64, heads=1, feed_forward=128, layers=2, positions=16)
QUICK = train.Settings(minutes=5, epochs=2, rows=4, evaluations=4, compiled=False, rate=1e-2)


@pytest.fixture(scope="module")
def trained() -> train.Run:
    """A finished run over a text that repeats four tokens, so that there is something to learn at once."""
    ids = np.asarray([2, *([5, 6, 7, 8] * 200)], np.uint16)
    text = packed.Packed(ids, np.asarray([0, len(ids)]), np.ones(1), {"novel": ids[:101]}, {"novel": 400})
    run = train.Run(text, TINY, QUICK, torch.device("cpu"))
    run.train()
    return run


def test_the_folder_that_training_writes_is_the_same_model_in_transformers(trained: train.Run, tmp_path: Path) -> None:
    trained.save(tmp_path)
    theirs = OPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = trained.network.eval()  # after saving it holds the weights as float16 rounds them
    ids = torch.randint(0, TINY.vocabulary, (2, TINY.positions), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        # The same sums of at most 128 terms, in another order at most: two branches a layer, and the head.
        sums, terms = 2 * TINY.layers + 1, TINY.feed_forward
        bound = sums * terms * torch.finfo(torch.float32).eps * float(expected.abs().max())
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=bound)


def test_training_lowers_the_held_out_loss_and_keeps_the_best_weights(trained: train.Run, tmp_path: Path) -> None:
    trained.save(tmp_path)
    log = json.loads((tmp_path / "training_log.json").read_text())
    means = [row["mean"] for row in log["curve"]]
    assert means[-1] < means[0]
    assert train.mean_loss(log["best"]) == min(means)
    assert set(log["best_float16"]) == {"novel"}


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    rates = [train.rate_at(step / 100, QUICK) for step in range(101)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == 0.0
