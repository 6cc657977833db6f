"""Computes a decoder layer by calling a port's operators, step by step of a program; it knows no architecture.

Which steps a layer has, and in which order, is in `architecture.program`.
"""

from collections.abc import Sequence

from flexref.architecture.program import Attend, BranchStep, LayerStep, Norm, Project, Residual
from flexref.backend.protocol import Array, Backend
from flexref.model.cache import LayerCache
from flexref.model.weights import NOTHING_LEARNED, StageWeights


def decoder_layer(be: Backend, layer: Sequence[LayerStep], w: StageWeights, x: Array, cache: LayerCache) -> None:
    """Take hidden states x (T, E) through the steps of a layer, in place. K and V of the new tokens go to `cache`.

    The T tokens are the new tokens of all rows of a group, one row after the other.
    """
    for step in layer:
        if isinstance(step, Residual):
            with be.frame():
                h = x
                for inner in step.inner:
                    h = _branch_step(be, inner, w, h, cache)
                project(be, step.last, w, h, out=x, add=True)
        else:
            normalize(be, step, w, x, out=x)


def _branch_step(be: Backend, step: BranchStep, w: StageWeights, h: Array, cache: LayerCache) -> Array:
    """One step of a residual branch: h (T, I) -> (T, O), a new array in the workspace, or `h` changed in place."""
    if isinstance(step, Project):
        return project(be, step, w, h)
    if isinstance(step, Norm):
        return normalize(be, step, w, h)
    if isinstance(step, Attend):
        return attend(be, step, h, cache)
    return be.activate(h, step.activation)


def normalize(be: Backend, step: Norm, w: StageWeights, x: Array, out: Array | None = None) -> Array:
    """Layer norm of x (T, E) -> (T, E); in place with `out=x`."""
    own = w.get(step.role, NOTHING_LEARNED)
    return be.layer_norm(x, own.weight, own.bias, step.epsilon, out)


def project(
    be: Backend, step: Project, w: StageWeights, x: Array, *, out: Array | None = None, add: bool = False
) -> Array:
    """x (T, I) -> x w^T + b, (T, O); with `add`, the result is added to `out`."""
    own = w[step.role]
    return be.linear(x, own.weight, own.bias, out=out, add=add)


def attend(be: Backend, step: Attend, qkv: Array, cache: LayerCache) -> Array:
    """qkv (T, 3E) -> causal attention of every row over its own cache, (T, E). K and V are appended to it first.

    The first `near_tokens` tokens belong to rows whose cache is on the device; `cache.far` computes the others
    beside them.
    """
    width, near = step.width, cache.near_tokens
    q, k, v = qkv[:near, :width], qkv[:near, width : 2 * width], qkv[:near, 2 * width :]
    context: Array = be.empty((qkv.shape[0], width), be.caps.compute_dtype)
    end = None if cache.far is None else cache.far(qkv[near:], context[near:])
    if near:
        be.append(cache.rows, cache.segments, k, v)
        be.attend(cache.rows, cache.segments, q, step.scale, context[:near])
    if end is not None:
        end()
    return context
