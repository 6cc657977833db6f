"""What a model computes, as data: the steps of its embedding, of a decoder layer and of its head; it knows no array.

Whoever needs to know what a layer is reads it here: see the table of readers in README.md of this folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from flexref.architecture.spec import LAYER_NORM_EPSILON, POSITION_OFFSET, ModelSpec


class Role(Enum):
    """What a tensor is for, which is the one step that uses it. The tensors of a stage lie in this order in a file."""

    POSITIONS = "positions"
    PROJECT_IN = "project_in"
    ATTENTION_NORM = "attention_norm"
    QKV = "attention_qkv"
    ATTENTION_OUT = "attention_out"
    FFN_NORM = "ffn_norm"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    FINAL_NORM = "norm"
    PROJECT_OUT = "project_out"
    HEAD = "table"
    TOKENS = "tokens"  # the head's table too, where the head is tied

    __hash__ = object.__hash__  # Enum's own is written in Python, and every step of every pass looks its tensors up


class TensorKind(Enum):
    """What a tensor is in its step: a norm's gain or shift, a projection's matrix or bias, a table of rows."""

    GAIN = "gain"
    SHIFT = "shift"
    MATRIX = "matrix"
    BIAS = "bias"
    TABLE = "table"


Shapes = tuple[tuple[TensorKind, tuple[int, ...]], ...]
"""The tensors that a step learned, in file order."""


@dataclass(frozen=True, slots=True)
class Norm:
    """x (..., E) -> its layer norm, with a gain and a shift (E,) where the model learned them."""

    role: Role
    width: int
    affine: bool
    epsilon: float

    @property
    def shapes(self) -> Shapes:
        """Gain and shift, or nothing."""
        return ((TensorKind.GAIN, (self.width,)), (TensorKind.SHIFT, (self.width,))) if self.affine else ()


@dataclass(frozen=True, slots=True)
class Project:
    """x (..., I) -> x w^T + b (..., O), or x w^T without a bias; a scheme may quantize w (O, I) if `quantizable`."""

    role: Role
    outputs: int
    inputs: int
    bias: bool = False
    quantizable: bool = False

    @property
    def shapes(self) -> Shapes:
        """Matrix, then bias."""
        matrix = (TensorKind.MATRIX, (self.outputs, self.inputs))
        return (matrix, (TensorKind.BIAS, (self.outputs,))) if self.bias else (matrix,)


@dataclass(frozen=True, slots=True)
class Attend:
    """Queries, keys and values (..., 3E) -> causal attention over the layer's cache and the new tokens (..., E)."""

    heads: int
    head_width: int

    @property
    def width(self) -> int:
        """E, the width of the result."""
        return self.heads * self.head_width

    @property
    def inputs(self) -> int:
        """3E: a token's query, key and value lie side by side in this order."""
        return 3 * self.width

    @property
    def scale(self) -> float:
        """What scores are multiplied with before the softmax."""
        return float(self.head_width**-0.5)


@dataclass(frozen=True, slots=True)
class Activate:
    """x (..., F) -> activation(x), elementwise."""

    activation: str
    width: int


BranchStep = Norm | Project | Attend | Activate


@dataclass(frozen=True, slots=True)
class Residual:
    """x (..., E) -> x + what `inner` and then `last` make of x."""

    inner: tuple[BranchStep, ...]
    last: Project

    @property
    def steps(self) -> tuple[BranchStep, ...]:
        """All of them in order."""
        return (*self.inner, self.last)


LayerStep = Norm | Residual


@dataclass(frozen=True, slots=True)
class Embedding:
    """A table (rows, width). One row is looked up for each token, or all are multiplied with a hidden state."""

    role: Role
    rows: int
    width: int

    @property
    def shapes(self) -> Shapes:
        """The whole table; a file may hold it in tiles."""
        return ((TensorKind.TABLE, (self.rows, self.width)),)


LearnedStep = Norm | Project | Embedding


@dataclass(frozen=True, slots=True)
class EmbedSteps:
    """Token ids -> x (..., E): rows of `tokens`, projected where their width is another, plus rows of `positions`."""

    tokens: Embedding
    project: Project | None
    positions: Embedding


@dataclass(frozen=True, slots=True)
class HeadSteps:
    """x (..., E) after the last layer -> logits (..., V): normed, projected, multiplied with all rows of `table`."""

    norm: Norm | None
    project: Project | None
    table: Embedding


@dataclass(frozen=True, slots=True)
class ModelProgram:
    """A whole model; `layer` is computed `layers` times, each time with tensors and a cache of its own."""

    embed: EmbedSteps
    layer: tuple[LayerStep, ...]
    layers: int
    head: HeadSteps

    def layer_steps(self) -> Iterator[BranchStep]:
        """The steps of a layer in the order in which they are computed, those inside residuals too."""
        for step in self.layer:
            if isinstance(step, Residual):
                yield from step.steps
            else:
                yield step

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of a layer in their order."""
        return tuple(step for step in self.layer_steps() if isinstance(step, Norm))

    @property
    def projections(self) -> tuple[Project, ...]:
        """The projections of a layer in their order."""
        return tuple(step for step in self.layer_steps() if isinstance(step, Project))

    @property
    def added(self) -> frozenset[Role]:
        """The roles of the projections whose results are added to the hidden state."""
        return frozenset(step.last.role for step in self.layer if isinstance(step, Residual))

    @property
    def attention(self) -> Attend:
        """The attention of a layer."""
        (found,) = (step for step in self.layer_steps() if isinstance(step, Attend))
        return found


@lru_cache(maxsize=256)
def program_of(spec: ModelSpec) -> ModelProgram:
    """The program of an OPT model (Zhang et al. 2022, section 2): norms come before their blocks, or after (350m)."""
    width = spec.width

    def norm(role: Role) -> Norm:
        return Norm(role, width, spec.affine_norm, LAYER_NORM_EPSILON)

    def project(role: Role, outputs: int, inputs: int) -> Project:
        return Project(role, outputs, inputs, bias=spec.bias, quantizable=True)

    attention = (project(Role.QKV, 3 * width, width), Attend(spec.heads, spec.head_width))
    feed_forward = (project(Role.FFN_UP, spec.ffn_width, width), Activate(spec.activation, spec.ffn_width))
    blocks = (
        (norm(Role.ATTENTION_NORM), attention, project(Role.ATTENTION_OUT, width, width)),
        (norm(Role.FFN_NORM), feed_forward, project(Role.FFN_DOWN, width, spec.ffn_width)),
    )
    layer: list[LayerStep] = []
    for own, inner, last in blocks:
        layer += [Residual((own, *inner), last)] if spec.pre_norm else [Residual(inner, last), own]
    tokens, positions = spec.vocabulary, spec.positions + POSITION_OFFSET
    return ModelProgram(
        EmbedSteps(
            Embedding(Role.TOKENS, tokens, spec.embed_width),
            Project(Role.PROJECT_IN, width, spec.embed_width) if spec.projected else None,
            Embedding(Role.POSITIONS, positions, width),
        ),
        tuple(layer),
        spec.layers,
        HeadSteps(
            norm(Role.FINAL_NORM) if spec.final_norm else None,
            Project(Role.PROJECT_OUT, spec.embed_width, width) if spec.projected else None,
            Embedding(Role.TOKENS if spec.tied_head else Role.HEAD, tokens, spec.embed_width),
        ),
    )
