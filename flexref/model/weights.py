"""A stage's operands by their role: from the names of a weight file to norms and linear maps; it moves nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Array, Matrix


@dataclass(frozen=True, slots=True)
class Norm:
    """Gain and shift (E,) of a layer norm; both None where the model learns neither."""

    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map: weight (O, I), bias (O,) or None."""

    weight: Matrix
    bias: Array | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A decoder layer; `qkv` maps E to 3E: queries, keys, values."""

    attention_norm: Norm
    qkv: Linear
    attention_out: Linear
    ffn_norm: Norm
    ffn_up: Linear
    ffn_down: Linear


@dataclass(frozen=True, slots=True)
class EmbedWeights:
    """The position table (P + 2, E), and the projection (E, W) of token rows where W is not E."""

    positions: Array
    project_in: Array | None


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The norm after the last layer, the projection (W, E) before the head; both only in the head's first tile."""

    norm: Norm | None
    project_out: Array | None
    table: Array


def _norm(tensors: Mapping[str, Matrix], prefix: str) -> Norm:
    return Norm(tensors.get(f"{prefix}/weight"), tensors.get(f"{prefix}/bias"))  # type: ignore[arg-type]


def _linear(tensors: Mapping[str, Matrix], prefix: str) -> Linear:
    return Linear(tensors[f"{prefix}/weight"], tensors.get(f"{prefix}/bias"))  # type: ignore[arg-type]


def layer_weights(tensors: Mapping[str, Matrix], layer: int) -> LayerWeights:
    """The operands of decoder layer `layer` among `tensors`."""
    prefix = f"layers/{layer:03d}"
    return LayerWeights(
        attention_norm=_norm(tensors, f"{prefix}/attention_norm"),
        qkv=_linear(tensors, f"{prefix}/attention_qkv"),
        attention_out=_linear(tensors, f"{prefix}/attention_out"),
        ffn_norm=_norm(tensors, f"{prefix}/ffn_norm"),
        ffn_up=_linear(tensors, f"{prefix}/ffn_up"),
        ffn_down=_linear(tensors, f"{prefix}/ffn_down"),
    )


def embed_weights(tensors: Mapping[str, Matrix]) -> EmbedWeights:
    """The operands of the embedding among `tensors`."""
    return EmbedWeights(tensors["embed/positions"], tensors.get("embed/project_in"))  # type: ignore[arg-type]


def head_weights(spec: ModelSpec, tensors: Mapping[str, Matrix], tile: int) -> HeadWeights:
    """The operands of the head's tile `tile` among `tensors`."""
    table = f"{'tokens' if spec.tied_head else 'head/table'}/{tile:04d}"
    norm = _norm(tensors, "head/norm") if spec.final_norm and tile == 0 else None
    return HeadWeights(norm, tensors.get("head/project_out"), tensors[table])  # type: ignore[arg-type]
