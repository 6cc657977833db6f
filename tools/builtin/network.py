"""An OPT decoder for training, its parameters named as Hugging Face names them; it knows no data.

Source: Zhang et al., OPT: Open Pre-trained Transformer Language Models (2022), and the layout of OPTForCausalLM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# OPT's table of positions starts with two rows that no token uses.
_POSITION_OFFSET = 2


@dataclass(frozen=True)
class Shape:
    """The sizes of a pre-norm OPT with a tied head."""

    vocabulary: int = 8192
    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    layers: int = 7
    positions: int = 512

    def config(self, dropout: float) -> dict[str, Any]:
        """The config.json of this shape."""
        return {
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "do_layer_norm_before": True,
            "dropout": dropout,
            "enable_bias": True,
            "eos_token_id": 2,
            "ffn_dim": self.feed_forward,
            "hidden_size": self.width,
            "init_std": 0.02,
            "layer_norm_elementwise_affine": True,
            "layerdrop": 0.0,
            "max_position_embeddings": self.positions,
            "model_type": "opt",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": 1,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": self.vocabulary,
            "word_embed_proj_dim": self.width,
        }


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width)
        self.k_proj = nn.Linear(shape.width, shape.width)
        self.v_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, E) -> (B, S, E)."""
        rows, tokens, width = x.shape
        q, k, v = (
            projection(x).view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return out


class _Layer(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.width)
        self.fc1 = nn.Linear(shape.width, shape.feed_forward)
        self.fc2 = nn.Linear(shape.feed_forward, shape.width)
        self.final_layer_norm = nn.LayerNorm(shape.width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, E) -> (B, S, E)."""
        attended = self.self_attn(self.self_attn_layer_norm(x))
        x = x + functional.dropout(attended, self.dropout, self.training)
        hidden = self.fc2(functional.relu(self.fc1(self.final_layer_norm(x))))
        return x + functional.dropout(hidden, self.dropout, self.training)


class Decoder(nn.Module):
    """Token ids to logits; `state()` is what OPTForCausalLM loads."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.embed_positions = nn.Embedding(shape.positions + _POSITION_OFFSET, shape.width)
        self.layers = nn.ModuleList(_Layer(shape, dropout) for _ in range(shape.layers))
        self.final_layer_norm = nn.LayerNorm(shape.width)
        self.dropout = dropout
        self._start(shape.layers)

    def _start(self, layers: int) -> None:
        """Small random matrices, those that end a residual branch smaller by the number of branches; no biases."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_branch = name.endswith(("out_proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if ends_branch else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) -> logits (B, S, V)."""
        positions = torch.arange(ids.shape[1], device=ids.device) + _POSITION_OFFSET
        x = self.embed_tokens(ids) + self.embed_positions(positions)
        x = functional.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.final_layer_norm(x), self.embed_tokens.weight)

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of the parameters on the CPU under Hugging Face's names; the tied head is not repeated."""
        return {f"model.decoder.{name}": value.detach().to("cpu", dtype) for name, value in self.state_dict().items()}
