"""Sizes at which details show: many layers, a head in tiles, long prompts, the last position, faint embeddings."""

from pathlib import Path

import pytest
from oracle_kit.checkpoints import SMALL_125M, Variant, load_oracle, new_model
from oracle_kit.compare import HOME, STEPS, STREAMED, Oracle, run_flexref, weight_file

from flexref.engine.request import Request
from flexref.storage.weightfile import open_weight_file


def prepared(variant: Variant, folder: Path) -> tuple[Path, Oracle]:
    new_model(variant).save_pretrained(folder)
    path = weight_file(folder)
    return path, Oracle(load_oracle(folder), path)


DEEP_PRE_NORM = Variant("deep-pre-norm", 1, 32, 64, layers=12, gain=0.8)
DEEP_POST_NORM = Variant("deep-post-norm", 1, 32, 64, before=False, tied=False, layers=12, gain=0.3, seed=2)
"""With larger maps a deep model forgets its context: post-norm ones soon say one token for ever."""


@pytest.mark.parametrize("variant", [DEEP_PRE_NORM, DEEP_POST_NORM], ids=lambda variant: variant.name)
def test_a_deep_model_stays_within_its_bound(variant: Variant, tmp_path: Path) -> None:
    path, oracle = prepared(variant, tmp_path)
    oracle.check_fully([[7, 40]], run_flexref(path, [[7, 40]], Request(STEPS, ignore_eos=True), STREAMED))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_head_in_tiles_with_a_short_last_one_gives_every_logit(tied: bool, tmp_path: Path) -> None:
    variant = Variant("tiled", 1, 32, 32, projection=96, tied=tied, vocabulary=139)
    path, oracle = prepared(variant, tmp_path)
    file = open_weight_file(path)
    assert 2 * file.tile_rows < variant.vocabulary < 3 * file.tile_rows
    # Token rows come from every tile, the short one too.
    prompts = [[138, 3, 64], [63, 128, 127, 0]]
    for policy in (HOME, STREAMED):
        oracle.check(prompts, run_flexref(path, prompts, Request(12, ignore_eos=True), policy))


def test_a_long_prompt_to_the_last_position(tmp_path: Path) -> None:
    path, oracle = prepared(SMALL_125M.changed(positions=140, layers=1), tmp_path)
    prompts = [[(3 * token + token * token) % 67 for token in range(132)], [5, 6]]
    for policy, scratch in ((HOME, 1 << 22), (STREAMED, 1 << 16)):
        run = run_flexref(path, prompts, Request(12, ignore_eos=True), policy, scratch_bytes=scratch)
        assert [len(generated) for generated in run.token_ids] == [9, 12]  # the last one is never read
        oracle.check(prompts, run)


def test_the_epsilon_of_layer_norms_is_the_oracles(tmp_path: Path) -> None:
    # Embeddings whose variance is about the epsilon: without it the first norm would enlarge them by a third more.
    path, oracle = prepared(SMALL_125M.changed(layers=1, embedding_scale=0.004, tied=False), tmp_path)
    oracle.check([[5, 9, 44]], run_flexref(path, [[5, 9, 44]], Request(8, ignore_eos=True), HOME))
