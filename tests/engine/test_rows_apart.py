"""What `Policy.row_invariant` does: the port is told before a job, and who asked for it in vain hears of that once."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend, linear

import flexref
from flexref.engine.events import Event, Notice
from flexref.engine.scoring import ScoredRow
from flexref.policy import Policy, Shares
from flexref.testing.strategies import numbers

APART, TOGETHER = Policy(), Policy(row_invariant=False)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of product was called."""
    called = Counter[str]()

    def counted(name: str, owner: Any) -> None:
        function = owner.linear

        def count(*arguments: Any, **named: Any) -> Any:
            called[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(owner, "linear", count)

    counted("apart", linear.RowsApart)
    counted("plain", linear)
    return called


class TogetherBackend(NumpyBackend):
    """A port that gives no row bits of its own, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = replace(self.caps, row_invariant=False)


def test_every_job_has_the_products_that_its_policy_asks_for(products: Counter[str]) -> None:
    with flexref.load("demo") as engine:
        for policy, called, other in (
            (TOGETHER, "plain", "apart"),
            (APART, "apart", "plain"),
            (TOGETHER, "plain", "apart"),
        ):
            products.clear()
            stats = engine.generate(["The king"], max_new_tokens=2, policy=policy).stats
            assert stats.row_invariant == stats.to_json()["row_invariant"] == policy.row_invariant
            assert products[called]
            assert not products[other]


def test_a_chosen_policy_keeps_rows_apart_unless_it_is_told_otherwise(products: Counter[str]) -> None:
    row = ScoredRow([5, 6, 7], 1)
    with flexref.load("demo", keep={"row_invariant": False}) as engine:
        assert not engine.score([row]).stats.policy.row_invariant
        assert not products["apart"]
    products.clear()
    with flexref.load("demo") as engine:
        assert engine.score([row]).stats.row_invariant
        assert not products["plain"]


def test_who_asks_a_port_for_what_it_has_not_is_told_once_in_every_job() -> None:
    heard = list[Event]()
    with flexref.load("demo", backend=TogetherBackend(), on_event=heard.append) as engine:
        for policy, notices in ((APART, 1), (TOGETHER, 0), (APART, 1)):
            heard.clear()
            assert not engine.generate(["The king", "A queen"], max_new_tokens=3, policy=policy).stats.row_invariant
            told = [event.text for event in heard if isinstance(event, Notice)]
            assert len(told) == notices
            assert all("numpy computes rows together" in text for text in told)


class ApartBackend(NumpyBackend):
    """A port whose host is not its device's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = replace(self.caps, one_memory=False)


ON_DEVICE, ON_HOST = Shares(1, 0, 0), Shares(0, 1, 0)


@pytest.mark.parametrize(
    ("policy", "elsewhere"),
    [
        (Policy(cache=ON_HOST, attention_on="host"), True),
        (Policy(cache=Shares(0.5, 0.5), attention_on="host", host_attention_share=0.5), True),
        (Policy(cache=ON_HOST, attention_on="host", host_attention_share=0.0), False),
        (Policy(cache=ON_DEVICE, attention_on="host"), False),
        (Policy(cache=ON_HOST), False),
    ],
)
def test_rows_have_no_bits_of_their_own_where_a_host_that_rounds_otherwise_attends_to_some(
    policy: Policy, elsewhere: bool
) -> None:
    for port, own in ((ApartBackend(), not elsewhere), (NumpyBackend(), True)):
        heard = list[Event]()
        with flexref.load("demo", backend=port, on_event=heard.append) as engine:
            assert engine.generate(["The king"], max_new_tokens=2, policy=policy).stats.row_invariant == own
            told = [event.text for event in heard if isinstance(event, Notice)]
            assert [text.startswith("numpy rounds otherwise where attention runs on the host") for text in told] == (
                [] if own else [True]
            )
            heard.clear()
            together = policy.changed(row_invariant=False)
            assert not engine.generate(["The king"], max_new_tokens=2, policy=together).stats.row_invariant
            assert not [event for event in heard if isinstance(event, Notice)]


def test_a_port_that_has_it_says_nothing() -> None:
    heard = list[Event]()
    with flexref.load("demo", on_event=heard.append) as engine:
        engine.generate(["The king"], max_new_tokens=2, policy=APART)
    assert not [event for event in heard if isinstance(event, Notice)]


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("add", [False, True])
def test_rows_together_are_the_products_of_numpy(tokens: int, add: bool) -> None:
    x, w, base = (numbers(shape, "float32", "normal", 3) for shape in ((tokens, 96), (33, 96), (tokens, 33)))
    backend = NumpyBackend()
    backend.keep_rows_apart(False)
    found = backend.linear(x, w, None, out=base.copy(), add=add)
    backend.close()
    assert np.array_equal(found, base + x @ w.T if add else x @ w.T)
