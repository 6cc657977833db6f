"""The check before a benchmark: it lets right ports pass, in half precision too, and refuses wrong ones."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_dry import DryBackend
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check import probable, smoke
from flexref.check.forward import model_logits_bound
from flexref.check.models import stored_tensors, write_model
from flexref.check.probable import ProbableTape
from flexref.check.smoke import WrongResult, check
from flexref.check.tolerances import arithmetic
from flexref.policy import Policy, Shares

HOME = Policy()
MIXED = Policy.from_percent([30, 30, 30, 30, 0, 50], rows_per_group=64, overlap=True)
SCHEMES = [(scheme, cache) for scheme in ("none", "int4") for cache in ("none", "int4")]


def half_backend() -> Any:
    """The port in half precision that the contract's own tests use."""
    path = Path(__file__).parents[1] / "meta" / "test_half_port.py"
    spec = importlib.util.spec_from_file_location("half_port", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HalfBackend()


@pytest.mark.parametrize(("scheme", "cache"), SCHEMES)
def test_the_reference_port_passes_with_every_option(scheme: str, cache: str) -> None:
    policy = MIXED.changed(attention_on="host" if scheme == "none" else "device", overlap=cache == "none")
    passed = check(NumpyBackend, policy.changed(cache_scheme=cache), scheme=scheme, dtype="float16")
    runs = 1 if cache == "none" else 2
    assert passed.logits == runs * len(smoke.PROMPT_TOKENS) * smoke.NEW_TOKENS * smoke.SPEC.vocabulary
    assert 0 < passed.worst_share < 0.7


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_a_port_in_half_precision_passes(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(smoke, "SEED", 1)
    policy = HOME.changed(cache_scheme="int4")
    assert check(half_backend, policy, scheme=scheme, dtype="float32").worst_share < 0.7


class OneKeyTooFew(NumpyBackend):
    """Every query sees one token too few of the past."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        past = tuple(max(0, count - 1) for count in segments.past)
        return super().attend(rows, replace(segments, past=past), q, scale, out)


class NoScale(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        return super().attend(rows, segments, q, 1.0, out)


class NoBias(NumpyBackend):
    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, None, out=out, add=add)


class NoResidual(NumpyBackend):
    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b, out=out, add=False)


class ValuesAreKeys(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, k)


class OneRowForAll(NumpyBackend):
    """The second row's records go to the first row's cache."""

    def cache_rows(self, records: Any, layout: Any) -> Any:
        return super().cache_rows([records[0]] * len(records), layout)


class LastOfEquals(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return (super().sample(logits, temperature, top_k, top_p, uniforms) + 1) % logits.shape[1]


class NotANumber(NumpyBackend):
    """One logit of all is lost, where nothing but this check looks."""

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        result = super().linear(x, w, b, out=out, add=add)
        if result.shape[1] == smoke.SPEC.vocabulary:
            result[0, 3] = np.inf
        return result

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(np.nan_to_num(logits, posinf=-1e9), temperature, top_k, top_p, uniforms)


WRONG = [OneKeyTooFew, NoScale, NoBias, NoResidual, ValuesAreKeys, OneRowForAll, LastOfEquals, NotANumber]


class CodesShifted(NumpyBackend):
    """Wrong where the cache is in 4-bit groups only: values are read with the codes of their neighbours."""

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        shifted = np.roll(v, 1, axis=-1) if rows.layout.quantized else v
        super().append(rows, segments, k, shifted)


class CodesUnscaled(NumpyBackend):
    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows, segments, k, 2 * v if rows.layout.quantized else v)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_port_is_refused_in_one_line(wrong: type[NumpyBackend]) -> None:
    with pytest.raises(WrongResult, match=r"nothing is timed$") as refused:
        check(wrong, HOME, scheme="none", dtype="float16")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [CodesShifted, CodesUnscaled])
def test_a_port_that_is_wrong_over_4_bit_caches_alone_is_refused(wrong: type[NumpyBackend]) -> None:
    check(wrong, HOME, scheme="none", dtype="float16")
    with pytest.raises(WrongResult):
        check(wrong, HOME.changed(cache_scheme="int4"), scheme="none", dtype="float16")


def test_the_last_tokens_alone_have_the_bounds_that_they_have_among_all(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 96, activation="gelu")
    write_model(tmp_path / "model.h5", spec)
    tensors = stored_tensors(tmp_path / "model.h5")
    whole = model_logits_bound(spec, tensors, [5, 6, 7, 44])
    for first in (0, 2, 3):
        some = model_logits_bound(spec, tensors, [5, 6, 7, 44], first=first)
        assert all(np.allclose(part, full[first:], rtol=1e-6, atol=0) for part, full in zip(some, whole, strict=True))


def test_a_bound_of_half_precision_is_wider_than_that_of_single_and_that_of_a_4_bit_cache_wider_still(
    tmp_path: Path,
) -> None:
    spec = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 96, activation="gelu")
    write_model(tmp_path / "model.h5", spec)
    tensors = stored_tensors(tmp_path / "model.h5")
    tapes = [ProbableTape.of(arithmetic(kind), group) for kind, group in (("float32", None), ("float16", None))]
    tapes.append(ProbableTape.of(arithmetic("float32"), 16))
    single, half, cached = (model_logits_bound(spec, tensors, [5, 6, 7], tape)[1] for tape in tapes)
    assert np.array_equal(single, model_logits_bound(spec, tensors, [5, 6, 7])[1])
    assert (half > single).all()
    assert (cached > half).all()


@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_errors_of_weights_add_the_same_whether_pairs_of_tokens_or_inputs_are_summed_first(
    data: st.DataObject, tokens: int, outputs: int, width: int
) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    inputs, squares = draw.standard_normal((tokens, width)), np.square(draw.standard_normal((outputs, width)))
    seen = data.draw(st.integers(1, tokens))
    adjoint = draw.standard_normal((3, seen, outputs), np.float32)
    by_weight = np.einsum("rso,si->roi", adjoint.astype(np.float64), inputs[:seen])
    needed = np.einsum("roi,oi->r", np.square(by_weight), squares)
    for most in (0, tokens):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probable, "PAIRED_TOKENS", most)
            found = probable.weights_squares(inputs, squares)(adjoint)
        assert np.allclose(found, needed, rtol=1e-5, atol=0)


def test_one_port_is_made_for_all_caches() -> None:
    made: list[NumpyBackend] = []

    def make() -> NumpyBackend:
        made.append(NumpyBackend())
        return made[-1]

    check(make, HOME.changed(cache_scheme="int4"), scheme="none", dtype="float16")
    assert len(made) == 1


def test_a_port_that_does_not_compute_is_refused() -> None:
    with pytest.raises(WrongResult, match="backend dry computes nothing"):
        check(DryBackend, HOME, scheme="none", dtype="float16")


def test_what_is_checked_lies_where_the_policy_says(tmp_path: Path) -> None:
    seen: list[str] = []

    class Seeing(NumpyBackend):
        def submit(self, lane: str, steps: Any, after: Any) -> Any:
            seen.append(lane)
            return super().submit(lane, steps, after)

    nowhere = Shares(0.0, 0.0, 1.0)
    policy = Policy(nowhere, nowhere, nowhere)
    check(Seeing, policy, scheme="none", dtype="float16", disk_dir=str(tmp_path))
    assert {"loading", "disk_in", "weights_in", "cache_in", "cache_out", "disk_out"} == set(seen)
    assert list(tmp_path.iterdir()) == []
