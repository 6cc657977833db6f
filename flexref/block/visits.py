"""What one visit computes, from operands that are on the device: also run on the dry port, to count the workspace."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Array, Backend
from flexref.model import opt
from flexref.model.weights import EmbedWeights, HeadWeights

Ids = npt.NDArray[np.int32]


def embed_visit(
    be: Backend, w: EmbedWeights, tables: Sequence[tuple[int, Array]], rows: Array, inputs: tuple[Ids, Ids], x: Array
) -> None:
    """Token rows (T, W) and positions -> x (T, E).

    `rows` already holds what was gathered on the host; `tables` are the tiles (first row, tile) on the device, and
    `inputs` the token ids and position ids, (T,) each.
    """
    token_ids, position_ids = inputs
    with be.frame():
        if tables:
            ids = be.upload(token_ids)
            for first, table in tables:
                be.gather(table, ids, first, rows)
        opt.embed(be, w, rows, be.upload(position_ids), x)


def hidden_visit(be: Backend, spec: ModelSpec, w: HeadWeights, x: Array, last_tokens: Ids, hidden: Array) -> None:
    """x (T, E) -> hidden (B, W) of the rows' last tokens, before the first tile of the head."""
    with be.frame():
        opt.final_hidden(be, spec, w, x, be.upload(last_tokens), hidden)
