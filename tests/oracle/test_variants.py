"""Every variant of the family against `transformers`: logits within the bound, the same greedy tokens."""

from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle_kit.checkpoints import VARIANTS, Variant, load_oracle, new_model
from oracle_kit.compare import HOME, LONG_PROMPT, STEPS, STREAMED, Oracle, run_flexref, weight_file

from flexref.engine.request import Request
from flexref.testing.strategies import policies, token_rows

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
    # Two rows of one group have one length: their caches could be taken for each other.
    prompts = [[5], [40], LONG_PROMPT]
    request = Request(STEPS, ignore_eos=True)
    home = run_flexref(path, prompts, request, HOME)
    assert [len(generated) for generated in home.token_ids] == [STEPS] * 3
    oracle.check_fully(prompts, home)
    # Another scratch cuts every operator into smaller tiles, so this is other rounding as well as another place.
    oracle.check(prompts, run_flexref(path, prompts, request, STREAMED, scratch_bytes=1 << 16))


@st.composite
def any_variants(draw: st.DrawFn) -> Variant:
    """Architectures of odd sizes with every choice independent of the others."""
    return Variant(
        "any",
        heads=draw(st.integers(1, 3)),
        head_width=draw(st.integers(2, 21)),
        ffn_dim=draw(st.integers(1, 50)),
        activation=draw(st.sampled_from(("relu", "gelu", "gelu_new", "quick_gelu", "silu", "tanh", "sigmoid"))),
        before=draw(st.booleans()),
        remove_final=draw(st.booleans()),
        projection=draw(st.one_of(st.none(), st.integers(1, 60))),
        bias=draw(st.booleans()),
        affine=draw(st.booleans()),
        tied=draw(st.booleans()),
        layers=draw(st.integers(1, 3)),
        vocabulary=draw(st.integers(3, 150)),
        positions=draw(st.integers(6, 20)),
        seed=draw(st.integers(0, 99)),
    )


# Shrinking would take longer than a test may, and tells little: sizes are small anyway.
@settings(phases=(Phase.explicit, Phase.reuse, Phase.generate), max_examples=settings.default.max_examples // 2)
@given(any_variants(), st.data())
def test_any_variant_gives_the_oracles_logits(
    tmp_path_factory: pytest.TempPathFactory, variant: Variant, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    new_model(variant).save_pretrained(folder)
    path = weight_file(folder)
    prompts = data.draw(token_rows(variant.vocabulary, rows=3, longest=5))
    run = run_flexref(path, prompts, Request(5, ignore_eos=True), data.draw(policies(cache_schemes=("none",))))
    Oracle(load_oracle(folder), path).check(prompts, run)
