"""Published sizes are found by their names and have the parameters that `transformers` counts."""

import pytest

from flexref.architecture.opt import from_config
from flexref.architecture.published import PUBLISHED, published
from flexref.architecture.stages import parameters
from flexref.errors import CheckpointError


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_the_parameters_that_transformers_counts(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

    spec = published(name)
    config = transformers.OPTConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        word_embed_proj_dim=spec.embed_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        ffn_dim=spec.ffn_width,
        do_layer_norm_before=spec.pre_norm,
    )
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(config)
    assert parameters(spec) == sum(values.numel() for values in model.parameters())
    assert spec == from_config(config.to_dict(), name)


@pytest.mark.parametrize("name", ["125m", "opt-125m", "OPT-125M", "facebook/opt-125m"])
def test_a_published_size_goes_by_several_names(name: str) -> None:
    assert published(name).name == "opt-125m"


def test_an_unknown_size_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"unknown model size '7b'; known: opt-125m, .*opt-175b"):
        published("7b")
