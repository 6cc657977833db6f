"""Random OPT checkpoints of every variant, as `transformers` models; it knows how weights are drawn, not their use."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM

PAD, EOS = 1, 2


@dataclass(frozen=True)
class Variant:
    """One architecture, named for its test, and how its weights are drawn: `gain` is the size of linear maps.

    Sizes are as small as the feature allows: two layers, so that one layer's cache depends on the other's output, and
    vocabularies that are primes.
    """

    name: str
    heads: int
    head_width: int
    ffn_dim: int
    activation: str = "relu"
    before: bool = True
    remove_final: bool = False
    projection: int | None = None
    bias: bool = True
    affine: bool = True
    tied: bool = True
    layers: int = 2
    vocabulary: int = 67
    positions: int = 80
    gain: float = 1.5
    embedding_scale: float = 1.0
    seed: int = 0
    other: Mapping[str, object] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def projects(self) -> str:
        """Whether token embeddings are as wide as the model."""
        if self.projection is None:
            return "same"
        return "smaller" if self.projection < self.width else "larger"

    def changed(self, **changes: object) -> "Variant":
        return replace(self, **changes)

    def config(self) -> OPTConfig:
        values = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "ffn_dim": self.ffn_dim,
            "max_position_embeddings": self.positions,
            "do_layer_norm_before": self.before,
            "_remove_final_layer_norm": self.remove_final,
            "word_embed_proj_dim": self.projection,
            "num_attention_heads": self.heads,
            "activation_function": self.activation,
            "enable_bias": self.bias,
            "layer_norm_elementwise_affine": self.affine,
            "tie_word_embeddings": self.tied,
            "pad_token_id": PAD,
            "bos_token_id": EOS,
            "eos_token_id": EOS,
        }
        return OPTConfig(**{**values, **self.other})


SMALL_125M = Variant("opt-125m", 2, 32, 256)
SMALL_350M = Variant("opt-350m", 1, 64, 96, before=False, projection=40)
SMALL_GALACTICA = Variant(
    "galactica", 1, 64, 160, "gelu", bias=False, affine=False, vocabulary=71, other={"bos_token_id": 0}
)

VARIANTS = (
    SMALL_125M,
    SMALL_350M,
    SMALL_GALACTICA,
    Variant("post-80-untied", 1, 80, 72, "gelu_new", before=False, remove_final=True, affine=False, tied=False),
    Variant("pre-80-wide-embedding-untied", 1, 80, 96, "silu", projection=112, bias=False, tied=False, vocabulary=73),
    Variant("post-32-bare", 3, 32, 40, "quick_gelu", False, True, 136, bias=False, affine=False, positions=76),
    Variant("pre-32-no-final-norm", 2, 32, 61, "tanh", True, True, 24, bias=False, affine=False, tied=False),
    Variant("post-64-two-heads", 2, 64, 80, "gelu_fast", False, True, 144, tied=False, layers=1, positions=200),
    Variant("pre-80-two-heads", 2, 80, 64, "sigmoid", projection=48, affine=False, layers=1, vocabulary=61),
)
"""Every pair of choices occurs in one of them at least; `test_every_pair_of_choices_is_in_some_variant` says so."""


def draw_weights(model: OPTForCausalLM, variant: Variant) -> None:
    """Fill `model` with random weights under which greedy text varies.

    The default initialization is so small that every context gives one token. Here linear maps enlarge what passes
    through them, positions outweigh tokens (before a tied head a token that stays visible is followed by itself), gains
    lie around 1, and biases are not zero. Rows after an activation sum to 0: its mean is common to all contexts.
    """
    generator = torch.Generator().manual_seed(variant.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                values = 1 + 0.2 * values
            elif weight.ndim == 1:
                values = 0.2 * values
            elif "embed_positions" in name:
                values = variant.embedding_scale * values
            elif "embed_tokens" in name:
                values = 0.3 * variant.embedding_scale * values
            elif "lm_head" in name:
                values = 0.3 * values
            else:
                values = values - values.mean(1, keepdim=True) if ".fc2." in name else values
                values = variant.gain / weight.shape[1] ** 0.5 * values
            weight.copy_(values)


def new_model(variant: Variant) -> OPTForCausalLM:
    """A model of the variant in float32, ready to be saved."""
    model = OPTForCausalLM(variant.config()).eval()
    draw_weights(model, variant)
    return model


def load_oracle(folder: Path) -> OPTForCausalLM:
    """The model in `folder` as `transformers` reads it, in float32."""
    return OPTForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
