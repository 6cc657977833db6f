"""The stages of an OPT model as functions of a port: embedding, decoder layer, and the tiles of the head."""

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Array, Backend
from flexref.model.cache import LayerCache
from flexref.model.layers import attention_block, feed_forward_block, normalize
from flexref.model.weights import EmbedWeights, HeadWeights, LayerWeights


def embed(be: Backend, w: EmbedWeights, token_rows: Array, position_ids: Array, x: Array) -> None:
    """token_rows (T, W), position_ids int32 (T,) -> x (T, E): rows, projected if W is not E, plus positions."""
    if w.project_in is None:
        be.expand(token_rows, x)
    else:
        with be.frame():
            rows = be.expand(token_rows, be.empty(token_rows.shape, be.caps.compute_dtype))
            be.linear(rows, w.project_in, None, out=x)
    be.add_rows(x, w.positions, position_ids)


def decoder_layer(be: Backend, spec: ModelSpec, w: LayerWeights, x: Array, cache: LayerCache) -> None:
    """x (T, E) through attention and feed-forward, in place; the new tokens' K and V are appended to `cache`."""
    attention_block(be, spec, w, x, cache)
    feed_forward_block(be, spec, w, x)


def final_hidden(be: Backend, spec: ModelSpec, w: HeadWeights, x: Array, last_tokens: Array, hidden: Array) -> None:
    """x (T, E), last_tokens int32 (B,) -> hidden (B, W): each row's last token, normed and projected."""
    with be.frame():
        h = be.gather(x, last_tokens, 0, be.empty((hidden.shape[0], spec.width), be.caps.compute_dtype))
        if w.norm is not None:
            h = normalize(be, h, w.norm, out=h)
        if w.project_out is not None:
            be.linear(h, w.project_out, None, out=hidden)
        else:
            be.expand(h, hidden)


def head_tile(be: Backend, w: HeadWeights, hidden: Array, first: int, logits: Array) -> None:
    """hidden (B, W) against the tile's vocabulary rows from `first` on -> those columns of logits (B, V)."""
    be.linear(hidden, w.table, None, out=logits[:, first : first + w.table.shape[0]])
