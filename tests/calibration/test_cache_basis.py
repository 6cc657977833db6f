"""Attention in another basis: the same function, what it reads known, both sides alike, no channel above the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.calibration.cache_basis import DAMPING, AttentionMaps, balanced, even_rotation, rebased
from flexref.calibration.quant_calibrated import Inputs
from flexref.check import reference
from flexref.storage.quant import Array, dequantize, quantize

EPSILON = float(np.finfo(np.float64).eps)


def maps_of(heads: int, width: int, seed: int, bias: bool) -> AttentionMaps:
    """Random maps in float64 of a layer (E = heads times width), some channels much larger than others."""
    draw, size = np.random.default_rng(seed), heads * width
    loud = np.exp(draw.standard_normal(3 * size))
    qkv, out = draw.standard_normal((3 * size, size)) * loud[:, None], draw.standard_normal((size, size))
    if not bias:
        return AttentionMaps(qkv, None, out, None)
    return AttentionMaps(qkv, 3 * draw.standard_normal(3 * size) * loud, out, draw.standard_normal(size))


def inputs_of(tokens: int, size: int, seed: int) -> Array:
    draw = np.random.default_rng([seed, 1])
    mixed = draw.standard_normal((tokens, 4)) @ draw.standard_normal((4, size))
    return mixed + 0.3 * draw.standard_normal((tokens, size)) + draw.standard_normal(size)


def read(maps: AttentionMaps, x: Array, heads: int) -> tuple[Array, Array, Array, Array]:
    """Queries, keys, values and what `out` reads, each (T, H, D)."""
    tokens = len(x)
    qkv = x @ maps.qkv.T + (0 if maps.qkv_bias is None else maps.qkv_bias)
    query, key, value = qkv.reshape(tokens, 3, heads, -1).transpose(1, 0, 2, 3)
    return query, key, value, reference.attend(query, key, value, 0, query.shape[-1] ** -0.5)


def attention(maps: AttentionMaps, x: Array, heads: int) -> Array:
    return reference.linear(read(maps, x, heads)[3].reshape(len(x), -1), maps.out, maps.out_bias)


def moments_of(x: Array, about_mean: bool):
    gathered = Inputs()
    gathered.add(x)
    return gathered.moments(about_mean)


shapes = {
    "heads": st.integers(1, 3),
    "width": st.sampled_from([1, 2, 5, 8, 20]),
    "bias": st.booleans(),
    "seed": st.integers(0, 1 << 32),
}


@given(**shapes)
def test_attention_computes_what_it_did(heads: int, width: int, bias: bool, seed: int) -> None:
    maps, size = maps_of(heads, width, seed, bias), heads * width
    new = rebased(maps, moments_of(inputs_of(50, size, seed), bias), heads)
    unseen = inputs_of(9, size, seed + 1)
    before, after = attention(maps, unseen, heads), attention(new.maps, unseen, heads)
    # Products sum up to `size` terms; a basis and its inverse enlarge rounding by their condition, softmax by scores.
    query, key, _, read_before = read(maps, unseen, heads)
    scores = np.abs(query).max() * np.abs(key).max() * width
    grown = max(float(np.linalg.cond(turn)) for turn in new.turns) ** 2 * (1 + scores)
    largest = np.abs(read_before).max() * np.abs(maps.out).sum(1).max()
    assert np.abs(after - before).max() <= 16 * EPSILON * size * grown * (largest + 1)
    assert (new.maps.qkv_bias is None, new.maps.out_bias is None) == (not bias, not bias)


@given(**shapes)
def test_the_moments_of_what_the_output_reads_are_told(heads: int, width: int, bias: bool, seed: int) -> None:
    maps, x = maps_of(heads, width, seed, bias), inputs_of(60, heads * width, seed)
    new = rebased(maps, moments_of(x, bias), heads)
    before, after = (read(part, x, heads)[3].reshape(60, -1) for part in (maps, new.maps))
    told, needed = new.moments(moments_of(before, bias)), moments_of(after, bias)
    scale = np.abs(new.turns).sum(2).max() ** 2 * np.square(before).max()
    np.testing.assert_allclose(told.covariance, needed.covariance, rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(told.mean, needed.mean, rtol=1e-3, atol=1e-4 * scale**0.5)


@given(heads=st.integers(1, 3), width=st.sampled_from([2, 8, 20]), seed=st.integers(0, 1 << 32))
def test_keys_and_values_of_the_sample_have_mean_zero_and_are_no_larger(heads: int, width: int, seed: int) -> None:
    maps, x = maps_of(heads, width, seed, True), inputs_of(200, heads * width, seed)
    new = rebased(maps, moments_of(x, True), heads)
    for before, after in zip(read(maps, x, heads)[1:3], read(new.maps, x, heads)[1:3], strict=True):
        np.testing.assert_allclose(after.mean(0), 0, atol=1e-4 * np.abs(after).max())
        # What stays as it is, is the size with damping; moments are gathered in float32.
        assert (after.var(0).sum(1) < before.var(0).sum(1) * (1 + DAMPING) * (1 + 1e-3)).all()


def spread_of(width: int, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    part = draw.standard_normal((width, width)) * np.exp(draw.standard_normal(width))
    return part @ part.T


def damped(spread: Array) -> Array:
    return spread + DAMPING * np.diagonal(spread).mean() * np.eye(len(spread))


@given(width=st.sampled_from([1, 2, 5, 16, 20, 64]), seed=st.integers(0, 1 << 32))
def test_both_sides_become_one_spread_and_no_basis_has_less(width: int, seed: int) -> None:
    stored, other = spread_of(width, seed), spread_of(width, seed + 1)
    turn = balanced(stored, other)
    stored, other, back = damped(stored), damped(other), np.linalg.inv(turn)
    one, two = turn @ stored @ turn.T, back.T @ other @ back
    assert np.trace(one) == pytest.approx(np.trace(stored), rel=1e-9)
    np.testing.assert_allclose(one / np.trace(one), two / np.trace(two), atol=1e-9)
    if width & (width - 1) == 0:
        np.testing.assert_allclose(np.diagonal(one), np.trace(one) / width, rtol=1e-9)
    for basis in (np.eye(width), *np.random.default_rng(seed).standard_normal((2, width, width))):
        its_back = np.linalg.inv(basis)
        product = np.trace(basis @ stored @ basis.T) * np.trace(its_back.T @ other @ its_back)
        assert np.trace(one) * np.trace(two) <= product * (1 + 1e-9)


@given(heads=st.integers(1, 2), width=st.sampled_from([2, 8, 20]), bias=st.booleans(), seed=st.integers(0, 1 << 32))
def test_the_costs_of_keys_and_values_are_the_least_there_are(heads: int, width: int, bias: bool, seed: int) -> None:
    maps, x = maps_of(heads, width, seed, bias), inputs_of(200, heads * width, seed)
    new = rebased(maps, moments_of(x, bias), heads).maps

    def sides(part: AttentionMaps, head: int) -> list[tuple[Array, Array]]:
        """What is stored and what meets it, as second moments (D, D): keys and queries, values and the output."""
        query, key, value, _ = (found[:, head] for found in read(part, x, heads))
        out = part.out.reshape(-1, heads, width)[:, head]
        stored = [values - values.mean(0) if bias else values for values in (key, value)]
        return [
            (kept.T @ kept / len(x), meets.T @ meets / count)
            for kept, meets, count in zip(stored, (query, out), (len(x), 1), strict=True)
        ]

    for head in range(heads):
        for before, after in zip(sides(maps, head), sides(new, head), strict=True):
            least = float(np.sqrt(np.maximum(np.linalg.eigvals(damped(before[0]) @ damped(before[1])).real, 0)).sum())
            # Of the damped sides the least is reached, so that the sides themselves have no more.
            assert np.trace(after[0]) * np.trace(after[1]) <= least**2 * (1 + 1e-3)


@given(width=st.integers(1, 160))
def test_the_rotation_is_one_and_mixes_evenly(width: int) -> None:
    rotation = even_rotation(width)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(width), atol=1e-12)
    if width & (width - 1) == 0:
        np.testing.assert_allclose(np.abs(rotation), width**-0.5)


def test_a_head_that_says_nothing_stays_finite() -> None:
    maps = AttentionMaps(np.zeros((24, 8), np.float32), np.zeros(24, np.float32), np.zeros((8, 8), np.float32), None)
    new = rebased(maps, moments_of(np.zeros((5, 8), np.float32), True), 2)
    for values in (new.maps.qkv, new.maps.qkv_bias, new.maps.out, new.turns):
        assert np.isfinite(values).all()


def test_4_bit_keys_cost_scores_less_than_half() -> None:
    heads, width = 4, 64
    maps, x = maps_of(heads, width, 3, True), inputs_of(2000, heads * width, 3)
    new = rebased(maps, moments_of(x[:1000], True), heads)
    lost = []
    for part in (maps, new.maps):
        query, key, _, _ = read(part, x[1000:1200], heads)
        rough = dequantize(quantize(key.reshape(-1, width).astype(np.float32), width, np.float16, "keys"))
        # A shift of all scores of a query is none.
        errors = np.einsum("qhd,khd->hqk", query, key - rough.reshape(key.shape))
        lost.append(float((errors - errors.mean(2, keepdims=True)).var()))
    assert lost[1] < 0.5 * lost[0]
