"""What Hugging Face calls an OPT model's sizes and tensors; it trusts no configuration and reads no file."""

import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flexref.architecture.program import Role
from flexref.architecture.spec import ACTIVATIONS, LARGEST_SIZES, MOST_EOS_TOKENS, ModelSpec, check_token_ids
from flexref.architecture.stages import PARTS, TensorSpec
from flexref.errors import CheckpointError
from flexref.units import is_integer

_ACTIVATION_SYNONYMS = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "swish": "silu",
}

_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Keys of `config.json` without which the size of the model would be a guess."""

_SIZE_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "width": "hidden_size",
        "embed_width": "word_embed_proj_dim",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn_width": "ffn_dim",
    }
)

_FLAG_DEFAULTS: Mapping[str, bool] = MappingProxyType(
    {
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    }
)

TOKENS = "decoder.embed_tokens.weight"
HEAD = "lm_head.weight"
PREFIXES = ("model.", "")
"""What may stand before the names of a checkpoint."""

_LAYER = "decoder.layers.{index}"
_SOURCES: Mapping[Role, tuple[str, ...]] = MappingProxyType(
    {
        Role.TOKENS: (TOKENS,),
        Role.POSITIONS: ("decoder.embed_positions.weight",),
        Role.PROJECT_IN: ("decoder.project_in.weight",),
        Role.ATTENTION_NORM: (_LAYER + ".self_attn_layer_norm.{part}",),
        Role.QKV: tuple(f"{_LAYER}.self_attn.{part}_proj.{{part}}" for part in "qkv"),
        Role.ATTENTION_OUT: (_LAYER + ".self_attn.out_proj.{part}",),
        Role.FFN_NORM: (_LAYER + ".final_layer_norm.{part}",),
        Role.FFN_UP: (_LAYER + ".fc1.{part}",),
        Role.FFN_DOWN: (_LAYER + ".fc2.{part}",),
        Role.FINAL_NORM: ("decoder.final_layer_norm.{part}",),
        Role.PROJECT_OUT: ("decoder.project_out.weight",),
        Role.HEAD: (HEAD,),
    }
)
"""The tensors of a checkpoint that make one of ours: the rows of several follow each other."""


def source_names(tensor: TensorSpec) -> tuple[str, ...]:
    """The names in a checkpoint whose rows, one after the other, make `tensor`, or the table of which it is a tile."""
    return tuple(name.format(index=tensor.index, part=PARTS[tensor.kind]) for name in _SOURCES[tensor.role])


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes by field of `ModelSpec`; what a configuration leaves out has the default that `transformers` has."""
    values = {"max_position_embeddings": 2048, "ffn_dim": 3072, **config}
    if values.get("word_embed_proj_dim") is None:
        values["word_embed_proj_dim"] = values["hidden_size"]
    sizes = {}
    for field, key in _SIZE_KEYS.items():
        value, largest = values[key], LARGEST_SIZES[field]
        if not is_integer(value) or not 1 <= value <= largest:
            raise CheckpointError(
                f"config.json: {key} must be an integer from 1 to {largest}, found {reprlib.repr(value)}"
            )
        sizes[field] = value
    return sizes


def _flags(config: Mapping[str, Any]) -> dict[str, bool]:
    flags = {}
    for key, default in _FLAG_DEFAULTS.items():
        value = config.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json: {key} must be true or false, found {reprlib.repr(value)}")
        flags[key] = value
    return flags


def _token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key, 2)
    ids = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if len(ids) > MOST_EOS_TOKENS or not all(is_integer(token) and token >= 0 for token in ids):
        raise CheckpointError(
            f"config.json: {key} must be an integer, a list of them or null, found {reprlib.repr(value)}"
        )
    return tuple(ids)


def _activation(config: Mapping[str, Any]) -> str:
    value = config.get("activation_function", "relu")
    name = _ACTIVATION_SYNONYMS.get(value, value) if isinstance(value, str) else value
    if name not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *_ACTIVATION_SYNONYMS))
        raise CheckpointError(f"config.json: unknown activation_function {reprlib.repr(value)}; known: {known}")
    return str(name)


def from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    """The spec that a Hugging Face `config.json` describes; `CheckpointError` says what it is if it is no OPT.

    Values of any type and size may stand in `config`: what is not of its key's kind is refused by key.
    """
    found = config.get("model_type")
    if found != "opt":
        raise CheckpointError(f"{name}: config.json has model_type {reprlib.repr(found)}, needed 'opt'")
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise CheckpointError(f"{name}: config.json lacks {', '.join(missing)}")
    flags, begin = _flags(config), _token_ids(config, "bos_token_id")
    if len(begin) > 1:
        raise CheckpointError(f"config.json: bos_token_id must be one integer or null, found {reprlib.repr(begin)}")
    spec = ModelSpec(
        name=name,
        **_sizes(config),
        pre_norm=flags["do_layer_norm_before"],
        final_norm=flags["do_layer_norm_before"] and not flags["_remove_final_layer_norm"],
        bias=flags["enable_bias"],
        affine_norm=flags["layer_norm_elementwise_affine"],
        activation=_activation(config),
        tied_head=flags["tie_word_embeddings"],
        bos_token_id=begin[0] if begin else None,
        eos_token_ids=_token_ids(config, "eos_token_id"),
    )
    check_token_ids(spec)
    return spec
