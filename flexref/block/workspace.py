"""What visits need beside their operands: results in the workspace, and expanded matrices; it knows no policy.

The visits themselves run on the port that only counts.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind, stages
from flexref.backend.protocol import Capabilities
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.block.visits import EmbedInputs, embed_visit, hidden_visit
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.weights import StageWeights, by_role
from flexref.storage.weightfile import StoredTensor, WeightFile
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
    most, size = 0, DTYPE_BYTES[caps.compute_dtype]
    for stage in stages(file.spec, file.tile_rows):
        held = (file.tensors[tensor.name] for tensor in stage.tensors)
        matrices = (stored for stored in held if expandable(stage, stored, caps.compute_dtype))
        most = max(most, sum(aligned(stored.elements * size, ALIGNMENT_BYTES) for stored in matrices))
    return most
