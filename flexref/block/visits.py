"""What one visit computes, from operands that are on the device: also run on the dry port, to count the workspace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import EmbedSteps, HeadSteps
from flexref.backend.protocol import Array, Backend
from flexref.model.stages import embed, final_hidden
from flexref.model.weights import StageWeights

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EmbedInputs:
    """Token ids and position ids, (T,) each; `tables` are the tiles (first row, tile) of the token table on the device.

    `rows` (T, W) already holds what was gathered on the host.
    """

    token_ids: Ids
    position_ids: Ids
    tables: Sequence[tuple[int, Array]]
    rows: Array


def embed_visit(be: Backend, steps: EmbedSteps, w: StageWeights, inputs: EmbedInputs, x: Array) -> None:
    """Token rows (T, W) and positions -> x (T, E)."""
    with be.frame():
        if inputs.tables:
            ids = be.upload(inputs.token_ids)
            for first, table in inputs.tables:
                be.gather(table, ids, first, inputs.rows)
        embed(be, steps, w, inputs.rows, be.upload(inputs.position_ids), x)


def hidden_visit(be: Backend, steps: HeadSteps, w: StageWeights, x: Array, last_tokens: Ids, hidden: Array) -> None:
    """x (T, E) -> hidden (B, W) of the rows' last tokens, before the first tile of the head."""
    with be.frame():
        final_hidden(be, steps, w, x, be.upload(last_tokens), hidden)
