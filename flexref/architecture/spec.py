"""What an OPT model is: its sizes and its variant, checked; it knows no step, no tensor and no file."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flexref.errors import CheckpointError
from flexref.units import is_integer

LAYER_NORM_EPSILON = 1e-5
"""OPT never configures it: `transformers` leaves torch's default in place for every layer norm of the family."""

POSITION_OFFSET = 2
"""The position table starts with two rows that no token uses (a legacy of padding ids in fairseq)."""

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid")
"""The feed-forward activations that every port computes; `gelu_tanh` is the tanh approximation of gelu."""

LARGEST_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "vocabulary": 1 << 24,
        "positions": 1 << 24,
        "width": 1 << 20,
        "embed_width": 1 << 20,
        "layers": 1 << 12,
        "heads": 1 << 20,
        "ffn_width": 1 << 22,
    }
)
"""Far above any model that exists: a hostile configuration must not make a reader allocate without bound."""

MOST_EOS_TOKENS = 1 << 10
"""Bounds the list of end-of-sequence tokens in a configuration."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One OPT architecture; every variant that `transformers`' OPT configuration can express is a value of it.

    `positions` is the longest sequence in tokens; `embed_width` differs from `width` where the token embedding is
    projected (OPT-350m); `pre_norm` is False where the norms follow their blocks (OPT-350m); `bias` and `affine_norm`
    are False for Galactica.
    """

    name: str
    vocabulary: int
    positions: int
    width: int
    embed_width: int
    layers: int
    heads: int
    ffn_width: int
    pre_norm: bool = True
    final_norm: bool = True
    bias: bool = True
    affine_norm: bool = True
    activation: str = "relu"
    tied_head: bool = True
    bos_token_id: int | None = 2
    eos_token_ids: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        self._check_types()
        for field, largest in LARGEST_SIZES.items():
            value = getattr(self, field)
            if not is_integer(value) or not 1 <= value <= largest:
                raise CheckpointError(
                    f"model {self.name!r}: {field} must be an integer from 1 to {largest}, found {reprlib.repr(value)}"
                )
        if self.width % self.heads:
            raise CheckpointError(
                f"model {self.name!r}: width {self.width} must be a multiple of its {self.heads} attention heads"
            )
        if self.activation not in ACTIVATIONS:
            raise CheckpointError(
                f"model {self.name!r}: unknown activation {self.activation!r}; known: {', '.join(ACTIVATIONS)}"
            )
        if self.final_norm and not self.pre_norm:
            raise CheckpointError(f"model {self.name!r}: a final norm exists only where norms precede their blocks")

    def _check_types(self) -> None:
        """What type annotations promise, for values that come from JSON."""
        for field in ("name", "activation"):
            if not isinstance(getattr(self, field), str):
                raise CheckpointError(f"model: {field} must be text, found {reprlib.repr(getattr(self, field))}")
        for field in ("pre_norm", "final_norm", "bias", "affine_norm", "tied_head"):
            if not isinstance(getattr(self, field), bool):
                raise CheckpointError(
                    f"model {self.name!r}: {field} must be true or false, found {reprlib.repr(getattr(self, field))}"
                )
        tokens = (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,)))
        for token in tokens:
            if not is_integer(token) or token < 0:
                raise CheckpointError(
                    f"model {self.name!r}: token ids must be integers of at least 0, found {reprlib.repr(token)}"
                )

    @property
    def head_width(self) -> int:
        """Width of one attention head, D = E / H."""
        return self.width // self.heads

    @property
    def projected(self) -> bool:
        """Whether token embeddings pass through a projection on their way in and out."""
        return self.embed_width != self.width


def check_token_ids(spec: ModelSpec) -> None:
    """`CheckpointError` unless the model has rows for its own begin and end tokens."""
    tokens = {
        "bos_token_id": () if spec.bos_token_id is None else (spec.bos_token_id,),
        "eos_token_id": spec.eos_token_ids,
    }
    for field, ids in tokens.items():
        for token in ids:
            if token >= spec.vocabulary:
                raise CheckpointError(
                    f"model {spec.name!r}: {field} {reprlib.repr(token)} is beyond the vocabulary "
                    f"of {spec.vocabulary} tokens"
                )
