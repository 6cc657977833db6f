"""What visits need beside their operands: results in the workspace, and expanded matrices; it knows no policy.

The visits themselves run on the port that only counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind, stages
from flexref.backend.capabilities import Capabilities
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.block.visits import EmbedInputs, embed_visit, hidden_visit
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.weights import StageWeights, by_role
from flexref.storage.weightfile import StoredTensor, WeightFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, aligned


@lru_cache(maxsize=256)
def workspace_bytes(spec: ModelSpec, dtype: str, stored: str, tokens: int, rows: int, gathers: bool) -> int:
    """The most that results take in any visit: the visits themselves run on the port that only counts.

    `dtype` is the compute type, `stored` the file's; `gathers` says that token rows are gathered on the device.
    """
    dry, program = create("dry", compute_dtype=dtype), program_of(spec)
    embed, layer, *_, head = stages(spec, spec.vocabulary)

    def array(shape: tuple[int, ...], kind: str = dtype) -> Any:
        size = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[kind]
        return dry.view(dry.allocate("device", size), 0, shape, kind)

    def weights(stage: Stage) -> StageWeights:
        return by_role(stage, {tensor.name: array(tensor.shape, stored) for tensor in stage.tensors})

    x, ids = array((tokens, spec.width)), np.zeros(tokens, np.int32)
    with dry.frame():
        gathered = dry.empty if gathers else array
        # Some tiles of the table may be on the device even where the others' rows are gathered on the host.
        tables = [(0, array((spec.vocabulary, spec.embed_width), stored))]
        inputs = EmbedInputs(ids, ids, tables, gathered((tokens, spec.embed_width), stored))
        embed_visit(dry, program.embed, weights(embed), inputs, x)
    layout = RecordLayout(spec.heads, spec.head_width, dtype)
    caches = dry.cache_rows([array((tokens * layout.record_bytes,), "uint8")], layout)
    decoder_layer(dry, program.layer, weights(layer), x, LayerCache(caches, dry.segments([0], [tokens]), tokens))
    hidden_visit(dry, program.head, weights(head), x, np.zeros(rows, np.int32), array((rows, spec.embed_width)))
    return max(ALIGNMENT_BYTES, aligned(dry.workspace_peak_bytes(), ALIGNMENT_BYTES))


def expandable(stage: Stage, stored: StoredTensor, compute_dtype: str) -> bool:
    """Whether it is the matrix of a product and is stored in another form than products compute in.

    The embedding's are used as they are stored: of its tables some rows are read.
    """
    is_matrix = stage.kind is not StageKind.EMBED and len(stored.shape) == 2
    return is_matrix and (stored.scheme != "none" or stored.parts[0].dtype.name != compute_dtype)


def expanded_bytes(file: WeightFile, caps: Capabilities) -> int:
    """Device bytes that the largest stage's matrices take once they are expanded."""
    return max(_stage_bytes(file, stage, caps.compute_dtype) for stage in stages(file.spec, file.tile_rows))


def _stage_bytes(file: WeightFile, stage: Stage, compute_dtype: str) -> int:
    held = (file.tensors[tensor.name] for tensor in stage.tensors)
    matrices = (stored for stored in held if expandable(stage, stored, compute_dtype))
    return sum(aligned(stored.elements * DTYPE_BYTES[compute_dtype], ALIGNMENT_BYTES) for stored in matrices)


class Expansion(Enum):
    """What becomes of matrices that are stored in another form than products compute in."""

    NEVER = 0
    """Every product reads them as they are stored."""
    PER_PASS = 1
    """A stage's are expanded once in a pass, for all groups, in a place that all stages share."""
    KEPT = 2
    """Those of stages that lie on the device are expanded once for a whole block; the others as in `PER_PASS`."""


@dataclass(frozen=True, slots=True)
class ExpandedPlan:
    """Where expanded matrices lie: `shared_bytes` for one stage at a time, and after them a place for each of `kept`.

    kept: stage -> offset in bytes. nbytes: of all of it.
    """

    shared_bytes: int
    kept: Mapping[int, int]
    nbytes: int

    @classmethod
    def of(cls, weights: WeightsPlan, caps: Capabilities, expansion: Expansion, groups: int) -> "ExpandedPlan":
        """The places for a block of so many groups.

        A single group shares a stage's matrices with nobody. Where a port reads stored codes in its products, it is
        faster than with expanded ones: there nothing is kept.
        """
        file, kept = weights.file, dict[int, int]()
        shared = expanded_bytes(file, caps) if groups > 1 and expansion is not Expansion.NEVER else 0
        end = shared
        if expansion is Expansion.KEPT and not caps.fused_rows:
            for number, plan in enumerate(weights.stages):
                nbytes = 0 if plan.streamed_bytes else _stage_bytes(file, plan.stage, caps.compute_dtype)
                if nbytes:
                    kept[number] = end
                    end += nbytes
        return cls(shared, kept, end)
