"""A model's tensors: their names, shapes and order in a weight file, by the stages of a pass; it knows no file.

What is learned follows from the program's steps. Names are made here from roles, and are read back nowhere.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import prod
from types import MappingProxyType

from flexref.architecture.program import Embedding, LearnedStep, Norm, Project, Role, TensorKind, program_of
from flexref.architecture.spec import ModelSpec

NAMES: Mapping[Role, str] = MappingProxyType(
    {
        Role.TOKENS: "tokens/{index:04d}",
        Role.POSITIONS: "embed/positions",
        Role.PROJECT_IN: "embed/project_in",
        Role.ATTENTION_NORM: "layers/{index:03d}/attention_norm/{part}",
        Role.QKV: "layers/{index:03d}/attention_qkv/{part}",
        Role.ATTENTION_OUT: "layers/{index:03d}/attention_out/{part}",
        Role.FFN_NORM: "layers/{index:03d}/ffn_norm/{part}",
        Role.FFN_UP: "layers/{index:03d}/ffn_up/{part}",
        Role.FFN_DOWN: "layers/{index:03d}/ffn_down/{part}",
        Role.FINAL_NORM: "head/norm/{part}",
        Role.PROJECT_OUT: "head/project_out",
        Role.HEAD: "head/table/{index:04d}",
    }
)
"""The name in a weight file of every tensor; `index` is the layer's, or the tile's of a table."""

PARTS: Mapping[TensorKind, str] = MappingProxyType(
    {
        TensorKind.GAIN: "weight",
        TensorKind.SHIFT: "bias",
        TensorKind.MATRIX: "weight",
        TensorKind.BIAS: "bias",
        TensorKind.TABLE: "",
    }
)
"""The last word of the name of a tensor that is one of two."""

TILED = (Role.TOKENS, Role.HEAD)
"""The tables that a file holds in tiles of rows."""

FILE_ORDER: Mapping[Role, int] = MappingProxyType({role: place for place, role in enumerate(Role)})
"""Where a role's tensors lie within their stage. With norms after their blocks it is not the order of computation."""


def tensor_name(role: Role, kind: TensorKind, index: int = 0) -> str:
    """The name of a tensor in a weight file; `index` is the layer's, or the tile's of a table."""
    return NAMES[role].format(index=index, part=PARTS[kind])


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the weight file: its name there, its shape, what it is for, and whether a scheme may quantize it.

    `index` is the decoder layer's that it belongs to, or the tile's of a table, else 0.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    kind: TensorKind
    index: int = 0
    quantizable: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_tile(self) -> bool:
        """Whether it is a part of a table that a file holds in tiles."""
        return self.role in TILED


class StageKind(str, Enum):
    """What a stage of a pass is, by the name that it has in reports."""

    EMBED = "embed"
    LAYER = "layer"
    HEAD = "head"
    """A tile of the table that hidden states are multiplied with."""
    TOKENS = "tokens"
    """The token table of its own, which is no stage of a pass and stands in files alone."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pass over the model whose weights are fetched together.

    `index` counts within the kind. The head is cut into tiles of vocabulary rows so that no stage streams much more
    than a decoder layer. `units` are the tensors that are placed together, in file order: a projection's matrix with
    its bias, a norm's two vectors, one tile of a table. `steps` are those that learned them, in the order of
    computation, norms that learned nothing among them.

    A token table that is not the head's is no part of a pass. It has a stage of the kind `tokens` in the order of the
    file alone.
    """

    kind: StageKind
    index: int
    units: tuple[tuple[TensorSpec, ...], ...]
    steps: tuple[LearnedStep, ...] = ()

    @property
    def name(self) -> str:
        """A short label: `embed`, `layer 3`, `head 0`."""
        return f"{self.kind} {self.index}" if self.kind in (StageKind.LAYER, StageKind.HEAD) else self.kind.value

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the stage, in file order."""
        return tuple(tensor for unit in self.units for tensor in unit)


def _unit(step: LearnedStep, index: int = 0) -> tuple[TensorSpec, ...]:
    """What a step learned, in file order: weight before bias."""
    quantizable = isinstance(step, Project) and step.quantizable
    return tuple(
        TensorSpec(
            tensor_name(step.role, kind, index),
            shape,
            step.role,
            kind,
            index,
            quantizable and kind is TensorKind.MATRIX,
        )
        for kind, shape in step.shapes
    )


def _stage(kind: StageKind, index: int, steps: Iterable[LearnedStep | None]) -> Stage:
    """A stage of these steps, a unit for every one that learned anything; variants lack some steps, which are None."""
    present = tuple(step for step in steps if step is not None)
    in_file = sorted(present, key=lambda step: FILE_ORDER[step.role])
    return Stage(kind, index, tuple(unit for unit in (_unit(step, index) for step in in_file) if unit), present)


def layer_stage(spec: ModelSpec, layer: int) -> Stage:
    """The decoder layer `layer`."""
    learned = (step for step in program_of(spec).layer_steps() if isinstance(step, Norm | Project))
    return _stage(StageKind.LAYER, layer, learned)


def _tiles(table: Embedding, tile_rows: int) -> Iterator[Embedding]:
    """A table (rows, width) cut into tiles of `tile_rows` rows each, the last one shorter."""
    for first in range(0, table.rows, tile_rows):
        yield replace(table, rows=min(tile_rows, table.rows - first))


def _tile_tensors(table: Embedding, tile_rows: int) -> tuple[TensorSpec, ...]:
    return tuple(tensor for index, tile in enumerate(_tiles(table, tile_rows)) for tensor in _unit(tile, index))


def token_tiles(spec: ModelSpec, tile_rows: int) -> tuple[TensorSpec, ...]:
    """The tiles of the token embedding; where the head is tied they are the head's tiles too."""
    return _tile_tensors(program_of(spec).embed.tokens, tile_rows)


def head_tiles(spec: ModelSpec, tile_rows: int) -> tuple[TensorSpec, ...]:
    """The tiles of the table that hidden states are multiplied with."""
    return _tile_tensors(program_of(spec).head.table, tile_rows)


def stages(spec: ModelSpec, tile_rows: int) -> tuple[Stage, ...]:
    """The stages of one pass in order: `embed`, every layer, every tile of the head.

    The token table is not a unit of `embed`: only the rows of the tokens at hand are gathered from it.
    """
    program = program_of(spec)
    embed, head = program.embed, program.head
    layers = (layer_stage(spec, layer) for layer in range(program.layers))
    # What all tiles of the head need is fetched with the first.
    heads = (
        _stage(StageKind.HEAD, index, (head.norm, head.project, tile) if index == 0 else (tile,))
        for index, tile in enumerate(_tiles(head.table, tile_rows))
    )
    return (_stage(StageKind.EMBED, 0, (embed.project, embed.positions)), *layers, *heads)


def file_stages(spec: ModelSpec, tile_rows: int) -> Iterator[Stage]:
    """Every tensor exactly once, by stages, in the order in which a file holds them."""
    for stage in stages(spec, tile_rows):
        yield stage
        if stage.kind is StageKind.EMBED and not spec.tied_head:
            yield Stage(StageKind.TOKENS, 0, tuple((tile,) for tile in token_tiles(spec, tile_rows)))


def parameters(spec: ModelSpec) -> int:
    """Number of weights, a tied table counted once."""
    return sum(tensor.elements for stage in file_stages(spec, spec.vocabulary) for tensor in stage.tensors)


def default_tile_rows(spec: ModelSpec, layer_bytes: int, element_bytes: int) -> int:
    """Rows per tile so that a tile is about as large as a decoder layer of `layer_bytes`, in multiples of 64."""
    rows = layer_bytes // (spec.embed_width * element_bytes)
    return min(spec.vocabulary, max(64, rows // 64 * 64))
