"""Every operator in float64, written as plainly as possible, to compare ports with; it knows no port."""

import math

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def linear(x: Numbers, w: Numbers, b: Numbers | None) -> Numbers:
    """x (T, I), w (O, I), b (O,) -> x w^T + b, (T, O)."""
    product = x @ w.T
    return product if b is None else product + b


def layer_norm(x: Numbers, w: Numbers | None, b: Numbers | None, epsilon: float) -> Numbers:
    """x (..., E) -> (x - mean) / sqrt(var + epsilon) * w + b."""
    centred = x - x.mean(-1, keepdims=True)
    normal: Numbers = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normal = normal if w is None else normal * w
    return normal if b is None else normal + b


def _logistic(x: Numbers) -> Numbers:
    gate: Numbers = 0.5 * (1 + np.tanh(0.5 * x))
    return gate


def _normal_distribution(x: Numbers) -> Numbers:
    complement = np.vectorize(math.erfc, otypes=[np.float64])
    return 0.5 * np.asarray(complement(-x / math.sqrt(2)), np.float64)


def _gate(x: Numbers, activation: str) -> tuple[Numbers, Numbers]:
    """(z, dz/dx) of an activation x * logistic(z)."""
    if activation == "gelu_tanh":  # (1 + tanh(z)) / 2 is logistic(2 z)
        factor = 2 * math.sqrt(2 / math.pi)
        return factor * (x + 0.044715 * x**3), factor * (1 + 3 * 0.044715 * x**2)
    slope = {"silu": 1.0, "quick_gelu": 1.702}[activation]
    return slope * x, np.full_like(x, slope)


def activate(x: Numbers, activation: str) -> Numbers:
    """x -> activation(x); the names are those of `spec.ACTIVATIONS`."""
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "tanh":
        return np.tanh(x)
    if activation == "sigmoid":
        return _logistic(x)
    return x * (_normal_distribution(x) if activation == "gelu" else _logistic(_gate(x, activation)[0]))


def slope(x: Numbers, activation: str) -> Numbers:
    """x -> the derivative of activation at x, elementwise; that of relu at 0 is 0."""
    if activation == "relu":
        return np.asarray(x > 0, np.float64)
    if activation == "tanh":
        return np.asarray(1 - np.tanh(x) ** 2, np.float64)
    if activation == "gelu":
        density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        return np.asarray(_normal_distribution(x) + x * density, np.float64)
    if activation == "sigmoid":
        return _logistic(x) * (1 - _logistic(x))
    z, steepness = _gate(x, activation)
    share = _logistic(z)
    return share + x * share * (1 - share) * steepness


def probabilities(q: Numbers, k: Numbers, past: int, scale: float) -> Numbers:
    """q (S, H, D), k (past + S, H, D) -> causal softmax(q k^T scale), (H, S, past + S)."""
    scores = scale * np.einsum("shd,thd->hst", q, k)
    visible = np.arange(k.shape[0]) <= past + np.arange(q.shape[0])[:, None]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    shares: Numbers = weights / weights.sum(-1, keepdims=True)
    return shares


def attend(q: Numbers, k: Numbers, v: Numbers, past: int, scale: float) -> Numbers:
    """q (S, H, D), k and v (past + S, H, D) -> causal attention (S, H, D)."""
    mixed: Numbers = np.einsum("hst,thd->shd", probabilities(q, k, past, scale), v)
    return mixed
