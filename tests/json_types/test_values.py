"""Types of JSON values: what is read is what the schema allows, and whatever is not is refused in one line."""

import json
from typing import Any

import json_schema_kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PolicyError
from flexref.json_types.containers import ListOf, MapOf, Pair
from flexref.json_types.objects import document
from flexref.json_types.values import Either, Maybe, Number, OneOf, Text, Truth, Whole

TYPES = {
    "truth": Truth(),
    "text": Text(),
    "filled": Text(filled=True),
    "one": OneOf(("a",)),
    "some": OneOf(("a", "b")),
    "whole": Whole(),
    "whole from": Whole(1),
    "whole between": Whole(-1, 2),
    "number": Number(),
    "number between": Number(0, 1),
    "maybe": Maybe(Whole(0)),
    "either": Either((Text(), Whole())),
    "list": ListOf(Number(), 2, 3),
    "pair": Pair(Whole(), Truth()),
    "map": MapOf(Whole()),
    "map of known": MapOf(Whole(), known=("a", "b"), noun="letter"),
    "map that needs": MapOf(Whole(), needs=("a",)),
    "map by pattern": MapOf(Truth(), pattern="[ab]+", noun="letters a and b"),
}

letters = st.sampled_from(["a", "b", "ab", "c", " "])
numbers = st.integers(-3, 3) | st.integers() | st.floats(-2, 2)
values = st.recursive(
    st.none() | st.booleans() | numbers | letters,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", TYPES)
@given(values)
def test_what_is_read_is_what_the_schema_allows(name: str, value: Any) -> None:
    kind = TYPES[name]
    wrong = json_schema_kit.check(value, document("urn:test", "Test", kind))
    if isinstance(value, float) and value.is_integer() and "whole" in name:
        return  # JSON Schema takes 1.0 for an integer, Python's counts are none
    if wrong:
        with pytest.raises(PolicyError, match=r"^it[^\n]*$"):
            kind.read("it", value, PolicyError)
        return
    read = kind.read("it", value, PolicyError)
    assert kind.takes(read)
    assert json.loads(json.dumps(read)) == value


def test_a_bound_is_told_whole_whichever_is_given() -> None:
    assert Whole(most=1 << 24).needed == "a whole number of at most 16777216"
    assert Whole(1, 1 << 24).needed == "a whole number from 1 to 16777216"
    assert Number(0.5).needed == "a number of at least 0.5"
    assert Number(most=1.0).needed == "a number of at most 1"
    assert Number().needed == "a number"
