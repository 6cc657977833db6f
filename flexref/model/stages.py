"""The embedding and the head of a model as functions of a port, read from its program; the layers are `layers`."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexref.architecture.program import EmbedSteps, HeadSteps
from flexref.backend.protocol import Array, Backend
from flexref.model.layers import normalize, project
from flexref.model.weights import StageWeights


def embed(be: Backend, steps: EmbedSteps, w: StageWeights, token_rows: Array, position_ids: Array, x: Array) -> None:
    """token_rows (T, W), position_ids int32 (T,) -> x (T, E): rows, projected if W is not E, plus positions."""
    if steps.project is None:
        be.expand(token_rows, x)
    else:
        with be.frame():
            rows = be.expand(token_rows, be.empty(token_rows.shape, be.caps.compute_dtype))
            project(be, steps.project, w, rows, out=x)
    be.add_rows(x, w[steps.positions.role].weight, position_ids)


@dataclass(frozen=True, slots=True)
class EmbedInputs:
    """Token ids and position ids, int32 (T,) each; `tables` are the tiles (first row, tile) of the token table.

    All of it is on the device. `rows` (T, W) already holds what was gathered on the host.
    """

    token_ids: Array
    position_ids: Array
    tables: Sequence[tuple[int, Array]]
    rows: Array


def embed_visit(be: Backend, steps: EmbedSteps, w: StageWeights, inputs: EmbedInputs, x: Array) -> None:
    """Token rows (T, W) and positions -> x (T, E)."""
    for first, table in inputs.tables:
        be.gather(table, inputs.token_ids, first, inputs.rows)
    embed(be, steps, w, inputs.rows, inputs.position_ids, x)


def final_hidden(be: Backend, steps: HeadSteps, w: StageWeights, x: Array, last_tokens: Array, hidden: Array) -> None:
    """x (T, E), last_tokens int32 (B,) -> hidden (B, W): each row's last token, normed and projected."""
    with be.frame():
        h = be.gather(x, last_tokens, 0, be.empty((hidden.shape[0], x.shape[1]), be.caps.compute_dtype))
        if steps.norm is not None:
            h = normalize(be, steps.norm, w, h, out=h)
        if steps.project is not None:
            project(be, steps.project, w, h, out=hidden)
        else:
            be.expand(h, hidden)


def head_tile(be: Backend, steps: HeadSteps, w: StageWeights, hidden: Array, first: int, logits: Array) -> None:
    """hidden (B, W) against the tile's vocabulary rows from `first` on -> those columns of logits (B, V)."""
    table = w[steps.table.role].weight
    be.linear(hidden, table, None, out=logits[:, first : first + table.shape[0]])
