"""The blocks of a decoder layer with their residuals, as functions of a port (Zhang et al. 2022, section 2)."""

from flexref.architecture.spec import LAYER_NORM_EPSILON, ModelSpec
from flexref.backend.protocol import Array, Backend
from flexref.model.cache import LayerCache
from flexref.model.weights import LayerWeights, Norm


def normalize(be: Backend, x: Array, norm: Norm, out: Array | None = None) -> Array:
    """Layer norm of x (T, E) with OPT's epsilon; in place with `out=x`."""
    return be.layer_norm(x, norm.weight, norm.bias, LAYER_NORM_EPSILON, out)


def attention_block(be: Backend, spec: ModelSpec, w: LayerWeights, x: Array, cache: LayerCache) -> None:
    """x (T, E) += attention over each row's own cache, causal; the norm comes before or, in OPT-350m, after."""
    width, near = spec.width, cache.near_tokens
    with be.frame():
        h = normalize(be, x, w.attention_norm) if spec.pre_norm else x
        qkv = be.linear(h, w.qkv.weight, w.qkv.bias)
        q, k, v = qkv[:near, :width], qkv[:near, width : 2 * width], qkv[:near, 2 * width :]
        context = be.empty((x.shape[0], width), be.caps.compute_dtype)
        if near:
            be.append(cache.rows, cache.segments, k, v)
            be.attend(cache.rows, cache.segments, q, spec.head_width**-0.5, context[:near])
        if cache.far is not None:
            cache.far(qkv[near:], context[near:])
        be.linear(context, w.attention_out.weight, w.attention_out.bias, out=x, add=True)
    if not spec.pre_norm:
        normalize(be, x, w.attention_norm, out=x)


def feed_forward_block(be: Backend, spec: ModelSpec, w: LayerWeights, x: Array) -> None:
    """x (T, E) += down(activation(up(x))); the norm comes before or, in OPT-350m, after."""
    with be.frame():
        h = normalize(be, x, w.ffn_norm) if spec.pre_norm else x
        h = be.activate(be.linear(h, w.ffn_up.weight, w.ffn_up.bias), spec.activation)
        be.linear(h, w.ffn_down.weight, w.ffn_down.bias, out=x, add=True)
    if not spec.pre_norm:
        normalize(be, x, w.ffn_norm, out=x)
