"""Every variant of the family against `transformers`: logits within the bound, the same greedy tokens."""

from itertools import combinations, product
from pathlib import Path

import pytest
from oracle_kit.checkpoints import VARIANTS, Variant, load_oracle, new_model
from oracle_kit.compare import HOME, STEPS, STREAMED, Oracle, assert_varied, run_flexref, weight_file

from flexref.engine.job import Request

CHOICES = {
    "before": (True, False),
    "remove_final": (True, False),
    "projects": ("same", "smaller", "larger"),
    "bias": (True, False),
    "affine": (True, False),
    "tied": (True, False),
    "head_width": (32, 64, 80),
}


def test_every_pair_of_choices_is_in_some_variant() -> None:
    for one, other in combinations(CHOICES, 2):
        found = {(getattr(variant, one), getattr(variant, other)) for variant in VARIANTS}
        assert set(product(CHOICES[one], CHOICES[other])) <= found, (one, other)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_generates_what_the_oracle_generates_at_home_and_from_disk(variant: Variant, tmp_path: Path) -> None:
    new_model(variant).save_pretrained(tmp_path)
    path = weight_file(tmp_path)
    oracle = Oracle(load_oracle(tmp_path), path)
    prompts = [[5], [9, 1, 2, 33, 33, 60, 4, 17, 3, 28, 11, 7], [2, 40, 8]]
    request = Request(STEPS, ignore_eos=True)
    home = run_flexref(path, prompts, request, HOME)
    assert [len(generated) for generated in home.token_ids] == [STEPS] * 3
    oracle.check(prompts, home)
    assert_varied(home)
    # Another scratch cuts every operator into smaller tiles, so this is other rounding as well as another place.
    oracle.check(prompts, run_flexref(path, prompts, request, STREAMED, scratch_bytes=1 << 16))
