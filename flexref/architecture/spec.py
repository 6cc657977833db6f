"""What an OPT model is: its sizes, its tensors in file order, its bytes and FLOPs; it knows no array and no file."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flexref.errors import CheckpointError

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


def is_integer(value: object) -> bool:
    """Whether `value` is an integer and not a truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


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

    @property
    def parameters(self) -> int:
        """Number of weights, a tied table counted once."""
        return sum(tensor.elements for stage in all_tensors(self, tile_rows=self.vocabulary) for tensor in stage[1])

    def decode_flops(self, context: int) -> int:
        """FLOPs for one token that attends to `context` tokens: 2 per weight of a product, 4 E per key and layer.

        FlexGen, appendix A.3, with the head included.
        """
        per_layer = 2 * (4 * self.width * self.width + 2 * self.width * self.ffn_width) + 4 * self.width * context
        projections = 4 * self.width * self.embed_width if self.projected else 0
        return self.layers * per_layer + projections + 2 * self.vocabulary * self.embed_width

    def prefill_flops(self, prompt: int) -> int:
        """FLOPs to process a prompt of `prompt` tokens, causal, with logits of its last token only."""
        head = 2 * self.vocabulary * self.embed_width
        return sum(self.decode_flops(context) - head for context in range(1, prompt + 1)) + head


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the weight file: its name there, its shape, and whether a scheme may quantize it."""

    name: str
    shape: tuple[int, ...]
    quantizable: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pass over the model whose weights are fetched together.

    `kind` is `embed`, `layer` or `head`; `index` counts within the kind. The head is cut into tiles of vocabulary rows
    so that no stage streams much more than a decoder layer. `units` are the tensors that are placed together, in file
    order: a linear map's weight with its bias, a norm's two vectors, one tile of a table.
    """

    kind: str
    index: int
    units: tuple[tuple[TensorSpec, ...], ...]

    @property
    def name(self) -> str:
        """A short label: `embed`, `layer 3`, `head 0`."""
        return self.kind if self.kind == "embed" else f"{self.kind} {self.index}"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the stage, in file order."""
        return tuple(tensor for unit in self.units for tensor in unit)


def _norm(spec: ModelSpec, prefix: str) -> tuple[TensorSpec, ...]:
    if not spec.affine_norm:
        return ()
    return (TensorSpec(f"{prefix}/weight", (spec.width,)), TensorSpec(f"{prefix}/bias", (spec.width,)))


def _linear(spec: ModelSpec, prefix: str, outputs: int, inputs: int) -> tuple[TensorSpec, ...]:
    weight = TensorSpec(f"{prefix}/weight", (outputs, inputs), quantizable=True)
    return (weight, TensorSpec(f"{prefix}/bias", (outputs,))) if spec.bias else (weight,)


def layer_stage(spec: ModelSpec, layer: int) -> Stage:
    """The decoder layer `layer`: norm, fused query-key-value (3E, E), output, norm, two feed-forward maps."""
    prefix, width = f"layers/{layer:03d}", spec.width
    units = (
        _norm(spec, f"{prefix}/attention_norm"),
        _linear(spec, f"{prefix}/attention_qkv", 3 * width, width),
        _linear(spec, f"{prefix}/attention_out", width, width),
        _norm(spec, f"{prefix}/ffn_norm"),
        _linear(spec, f"{prefix}/ffn_up", spec.ffn_width, width),
        _linear(spec, f"{prefix}/ffn_down", width, spec.ffn_width),
    )
    return Stage("layer", layer, tuple(unit for unit in units if unit))


def table_tiles(spec: ModelSpec, table: str, tile_rows: int) -> tuple[TensorSpec, ...]:
    """The tiles of a (V, embed_width) table named `table`, `tile_rows` rows each, the last one shorter."""
    firsts = range(0, spec.vocabulary, tile_rows)
    return tuple(
        TensorSpec(f"{table}/{tile:04d}", (min(tile_rows, spec.vocabulary - first), spec.embed_width))
        for tile, first in enumerate(firsts)
    )


def token_tiles(spec: ModelSpec, tile_rows: int) -> tuple[TensorSpec, ...]:
    """The tiles of the token embedding; where the head is tied they are the head's tiles too."""
    return table_tiles(spec, "tokens", tile_rows)


def stages(spec: ModelSpec, tile_rows: int) -> tuple[Stage, ...]:
    """The stages of one pass in order: `embed`, every layer, every tile of the head.

    The token table is not a unit of `embed`: only the rows of the tokens at hand are gathered from it.
    """
    embed: list[tuple[TensorSpec, ...]] = [
        (TensorSpec("embed/positions", (spec.positions + POSITION_OFFSET, spec.width)),)
    ]
    head: list[tuple[TensorSpec, ...]] = [_norm(spec, "head/norm")] if spec.final_norm and spec.affine_norm else []
    if spec.projected:
        embed.append((TensorSpec("embed/project_in", (spec.width, spec.embed_width)),))
        head.append((TensorSpec("head/project_out", (spec.embed_width, spec.width)),))
    tiles = table_tiles(spec, "tokens" if spec.tied_head else "head/table", tile_rows)
    head_stages = (Stage("head", tile, (*(head if tile == 0 else ()), (tensor,))) for tile, tensor in enumerate(tiles))
    return (Stage("embed", 0, tuple(embed)), *(layer_stage(spec, n) for n in range(spec.layers)), *head_stages)


def all_tensors(spec: ModelSpec, tile_rows: int) -> Iterator[tuple[str, tuple[TensorSpec, ...]]]:
    """Every tensor exactly once, grouped as (stage name, tensors), in the order in which a file holds them."""
    for stage in stages(spec, tile_rows):
        yield stage.name, stage.tensors
        if stage.kind == "embed" and not spec.tied_head:
            yield "tokens", token_tiles(spec, tile_rows)


def default_tile_rows(spec: ModelSpec, layer_bytes: int, element_bytes: int) -> int:
    """Rows per tile so that a tile is about as large as a decoder layer of `layer_bytes`, in multiples of 64."""
    rows = layer_bytes // (spec.embed_width * element_bytes)
    return min(spec.vocabulary, max(64, rows // 64 * 64))


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
