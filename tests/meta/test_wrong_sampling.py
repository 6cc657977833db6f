"""Ports that are wrong on purpose in how they choose tokens, each with one bug: the contract must reject each."""

from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from flexref.errors import FlexrefError
from flexref.testing import violation
from flexref.testing.clauses import sampling
from flexref.testing.contract import CONTRACT, Clause, clause_name


class IdsAsThirtyTwoBits(NumpyBackend):
    def sample(self, *arguments: Any) -> Any:
        return super().sample(*arguments).astype(np.int32)


class TiesToTheHigherId(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        if temperature == 0:
            return logits.shape[1] - 1 - super().sample(logits[:, ::-1], temperature, top_k, top_p, uniforms)
        return super().sample(logits, temperature, top_k, top_p, uniforms)


class TakesAnyLogits(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(np.nan_to_num(logits), temperature, top_k, top_p, uniforms)


class DropsTheTokenThatReachesTopP(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        if temperature == 0 or top_p == 1:
            return super().sample(logits, temperature, top_k, top_p, uniforms)
        chosen = []
        for row, values in enumerate(logits):
            ranked = np.sort(values.astype(np.float64))[::-1][: top_k or None]
            reached = np.cumsum(np.exp((ranked - ranked[0]) / temperature))
            kept = max(1, int((reached < top_p * reached[-1]).sum()))
            chosen.append(super().sample(logits[row : row + 1], temperature, kept, 1.0, uniforms[row : row + 1]))
        return np.concatenate(chosen)


class KeepsOneTokenTooMany(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(logits, temperature, top_k + 1 if top_k else 0, top_p, uniforms)


class TokensStandById(NumpyBackend):
    """Does not sort them: right where all logits are equal, one token is kept, or the best ones come first."""

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        found = super().sample(logits, temperature, top_k, top_p, uniforms)
        if temperature == 0 or top_k:
            return found
        weights = np.exp((logits - logits.max(-1, keepdims=True)) / max(temperature, 1e-30))
        reached = np.cumsum(weights, -1, dtype=np.float64)
        return (reached <= uniforms[:, None] * reached[:, -1:] * top_p).sum(-1).clip(max=logits.shape[1] - 1)


class TemperatureIsSquared(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(logits, temperature**2, top_k, top_p, uniforms)


class TakesTheTokenAtItsBorder(NumpyBackend):
    """As `searchsorted` from the other side would: the token whose share ends where the uniform number is."""

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(logits, temperature, top_k, top_p, np.nextafter(uniforms, 0))


class DividesSharesBeforeItSums(NumpyBackend):
    """A right port: its shares are those of a softmax, and those that `top_p` keeps are divided by their sum again."""

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        super().sample(logits, temperature, top_k, top_p, uniforms)  # it refuses what is not finite
        if temperature == 0:
            return logits.argmax(-1)
        chosen = []
        for row, uniform in zip(logits.astype(np.float64), uniforms, strict=True):
            order = np.argsort(-row, kind="stable")[: top_k or None]
            shares = np.exp((row[order] - row[order[0]]) / temperature)
            shares /= shares.sum()
            shares = shares[: np.searchsorted(shares.cumsum(), top_p) + 1]
            place = np.searchsorted((shares / shares.sum()).cumsum(), uniform, "right")
            chosen.append(order[min(place, len(shares) - 1)])
        return np.array(chosen)


class OneUniformForAllRows(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return super().sample(logits, temperature, top_k, top_p, np.full_like(uniforms, uniforms[0]))


WRONG: tuple[tuple[type[NumpyBackend], Clause], ...] = (
    (IdsAsThirtyTwoBits, sampling.sampling_gives_a_token_per_row),
    (TiesToTheHigherId, sampling.greedy_takes_the_lowest_of_the_best),
    (TakesAnyLogits, sampling.logits_that_are_not_finite_are_refused),
    (DropsTheTokenThatReachesTopP, sampling.sampling_inverts_the_distribution),
    (KeepsOneTokenTooMany, sampling.sampling_inverts_the_distribution),
    (TokensStandById, sampling.sampling_inverts_the_distribution),
    (TemperatureIsSquared, sampling.sampling_inverts_the_distribution),
    (TakesTheTokenAtItsBorder, sampling.equal_logits_have_equal_shares),
    (OneUniformForAllRows, sampling.samples_do_not_depend_on_other_rows),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[NumpyBackend], clause: Clause) -> None:
    backend = port()
    assert isinstance(violation(backend, clause), AssertionError | FlexrefError)
    backend.close()


def test_a_port_that_does_not_sort_is_rejected_by_as_many_examples_as_a_conformance_run_has() -> None:
    backend = TokensStandById()
    assert isinstance(violation(backend, sampling.sampling_inverts_the_distribution, 100), AssertionError)
    backend.close()


@pytest.mark.parametrize(
    "clause", [sampling.sampling_inverts_the_distribution, sampling.equal_logits_have_equal_shares], ids=clause_name
)
def test_a_port_that_rounds_otherwise_is_not_rejected(clause: Clause) -> None:
    """Other examples than `violation` has, and more of them: what was asked too sharply was seldom met."""
    backend = DividesSharesBeforeItSums()

    @seed(0)
    @settings(max_examples=400, derandomize=False, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def keeps(data: st.DataObject) -> None:
        clause(backend, data)

    keeps()
    backend.close()


def test_every_clause_on_sampling_rejects_a_port() -> None:
    here = {clause for clause in CONTRACT if clause.__module__ == sampling.__name__}
    assert {clause for _, clause in WRONG} == here
