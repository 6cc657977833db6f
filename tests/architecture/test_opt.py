"""Configurations of every kind and of none become a spec, or are refused in one line."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flexref.architecture.opt import from_config
from flexref.architecture.spec import ACTIVATIONS, ModelSpec
from flexref.errors import CheckpointError

CONFIG = {
    "model_type": "opt",
    "vocab_size": 50,
    "max_position_embeddings": 20,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 48,
}
SPEC = ModelSpec("tiny", 50, 20, 12, 12, 2, 3, 48)
SIZE_KEYS = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
    "hidden_size": "width",
    "word_embed_proj_dim": "embed_width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "ffn_dim": "ffn_width",
}
FLAG_KEYS = (
    "do_layer_norm_before",
    "_remove_final_layer_norm",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "tie_word_embeddings",
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def test_a_plain_configuration_is_read() -> None:
    assert from_config(CONFIG, "tiny") == SPEC


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"word_embed_proj_dim": None}, {}),
        ({"word_embed_proj_dim": 8}, {"embed_width": 8}),
        ({"do_layer_norm_before": False}, {"pre_norm": False, "final_norm": False}),
        ({"_remove_final_layer_norm": True}, {"final_norm": False}),
        ({"enable_bias": False, "layer_norm_elementwise_affine": False}, {"bias": False, "affine_norm": False}),
        ({"activation_function": "gelu_new"}, {"activation": "gelu_tanh"}),
        ({"activation_function": "swish"}, {"activation": "silu"}),
        ({"tie_word_embeddings": False}, {"tied_head": False}),
        ({"eos_token_id": [3, 5]}, {"eos_token_ids": (3, 5)}),
        ({"eos_token_id": None, "bos_token_id": None}, {"eos_token_ids": (), "bos_token_id": None}),
        ({"bos_token_id": 0}, {"bos_token_id": 0}),
        ({"dropout": 0.1, "architectures": ["OPTForCausalLM"], "unknown": {}}, {}),
    ],
)
def test_every_variant_of_the_configuration_is_read(changes: dict, expected: dict) -> None:
    assert from_config({**CONFIG, **changes}, "tiny") == replace(SPEC, **expected)


def test_what_is_left_out_has_the_default_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

    default = transformers.OPTConfig().to_dict()
    required = {key: default[key] for key in CONFIG if key not in ("max_position_embeddings", "ffn_dim")}
    assert from_config(required, "x") == from_config(default, "x")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_ours_is_one_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
    functions = pytest.importorskip("transformers.activations", reason="the oracle needs transformers").ACT2FN

    theirs = {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)
    assert functions[theirs](torch.ones(1)).shape == (1,)
    assert from_config({**CONFIG, "activation_function": theirs}, "x").activation == name


@pytest.mark.parametrize(
    "key", [*SIZE_KEYS, *FLAG_KEYS, "bos_token_id", "eos_token_id", "activation_function", "model_type"]
)
@given(value=JSON_VALUES)
@example(value=True)
@example(value=0)
@example(value=-1)
@example(value=12.0)
@example(value="12")
@example(value=[[[[[]]]]])
def test_any_value_of_any_key_is_read_or_refused_in_one_line(key: str, value: Any) -> None:
    try:
        found = from_config({**CONFIG, key: value}, "x")
    except CheckpointError as error:
        told = str(error)
        assert "\n" not in told
        assert len(told) < 400
        return
    for field in fields(ModelSpec):
        assert isinstance(getattr(found, field.name), (int, str, bool, tuple, type(None)))
    json.dumps(asdict(found))


@pytest.mark.parametrize("key", SIZE_KEYS)
@pytest.mark.parametrize("value", [0, -1, 12.0, "12", True, [], 10**400, 2**63])
def test_a_size_that_is_none_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: {key} must be an integer from 1 to \d+, found "):
        from_config({**CONFIG, key: value}, "x")


@pytest.mark.parametrize("key", [key for key in SIZE_KEYS if key != "word_embed_proj_dim"])
def test_a_size_that_is_null_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {key} must be an integer from 1 to .*, found None"):
        from_config({**CONFIG, key: None}, "x")


@pytest.mark.parametrize("key", FLAG_KEYS)
@pytest.mark.parametrize("value", [None, 0, 1, "no", []])
def test_a_flag_that_is_none_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {key} must be true or false, found "):
        from_config({**CONFIG, key: value}, "x")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "x: config.json has model_type None, needed 'opt'"),
        ({"model_type": "llama"}, "x: config.json has model_type 'llama', needed 'opt'"),
        ({"model_type": "opt"}, "lacks vocab_size, hidden_size, num_hidden_layers, num_attention_heads"),
        ({**CONFIG, "num_attention_heads": 5}, "width 12 must be a multiple of its 5 attention heads"),
        ({**CONFIG, "activation_function": "mish"}, "unknown activation_function 'mish'; known: relu, "),
        ({**CONFIG, "bos_token_id": [1, 2]}, "bos_token_id must be one integer or null"),
        ({**CONFIG, "bos_token_id": 50}, "bos_token_id 50 is beyond the vocabulary of 50 tokens"),
        ({**CONFIG, "eos_token_id": [2, 50]}, "eos_token_id 50 is beyond the vocabulary of 50 tokens"),
        ({**CONFIG, "eos_token_id": -1}, "eos_token_id must be an integer, a list of them or null, found -1"),
        ({**CONFIG, "eos_token_id": [2] * 5000}, "eos_token_id must be an integer, a list of them or null"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: dict, said: str) -> None:
    with pytest.raises(CheckpointError, match=said.replace("[", r"\[")):
        from_config(config, "x")
