"""Dataclasses as JSON objects: fields are checked by their annotations, read, and described."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import json_schema_kit
import pytest

from flexref.errors import PolicyError
from flexref.json_types.objects import check_fields, document, object_of
from flexref.json_types.values import OneOf, Whole


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel.

    More of it.
    """

    inches: Annotated[float, "Its width in inches."]
    made_of: Annotated[str, OneOf(("wood", "steel")), "Its material."] = "wood"


@dataclass(frozen=True, slots=True)
class Cart:
    """Something on wheels."""

    wheels: Annotated[list[Wheel], "All of its wheels."]
    spare: Annotated[Wheel | None, "One more wheel."] = None
    loads: Annotated[Mapping[str, int], "Kilograms by goods."] = field(default_factory=dict)
    axles: Annotated[int | None, Whole(1), "How many axles."] = None

    @property
    def weight(self) -> int:
        """Kilograms of all goods together."""
        return sum(self.loads.values())


CART = document("urn:test:cart", "A cart", object_of(Cart))


def read(values: Mapping[str, Any]) -> Cart:
    return Cart(**object_of(Cart).read_members("cart.json: ", values, PolicyError))


def test_a_schema_names_every_object_once_and_describes_every_member() -> None:
    assert (CART["$id"], CART["title"], CART["$ref"]) == ("urn:test:cart", "A cart", "#/$defs/Cart")
    assert list(CART["$defs"]) == ["Cart", "Wheel"]
    wheel, cart = CART["$defs"]["Wheel"], CART["$defs"]["Cart"]
    assert wheel["description"] == "One wheel."
    assert wheel["properties"]["made_of"] == {
        "description": "Its material.",
        "enum": ["wood", "steel"],
        "default": "wood",
    }
    assert (wheel["required"], cart["required"]) == (["inches"], ["wheels"])
    assert "default" not in cart["properties"]["loads"]
    assert cart["properties"]["spare"]["default"] is None


def test_a_property_is_shown_beside_the_fields() -> None:
    shown = object_of(Cart, "weight").members["weight"]
    assert (shown.about, shown.kind) == ("Kilograms of all goods together.", Whole())


def test_what_is_read_are_instances() -> None:
    values = {"wheels": [{"inches": 3}, {"inches": 4.5, "made_of": "steel"}], "loads": {"hay": 2}, "axles": None}
    assert json_schema_kit.check(values, CART) == []
    assert read(values) == Cart((Wheel(3.0), Wheel(4.5, "steel")), None, {"hay": 2}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"wheels": []}, None),
        ({}, "cart.json: field 'wheels' is missing"),
        ({"wheels": [], "colour": 1}, "cart.json: unknown field 'colour'; known: wheels, spare, loads, axles"),
        ({"wheels": [3]}, "cart.json: wheels must be an object of inches, made_of, found 3"),
        ({"wheels": [{}]}, "cart.json: wheels must have the fields inches, made_of, found "),
        (
            {"wheels": [{"inches": 1, "a": 2}]},
            "cart.json: wheels must have the fields inches, made_of, found a, inches",
        ),
        ({"wheels": [{"inches": "1"}]}, "cart.json: wheels.inches must be a number, found '1'"),
        ({"wheels": [], "loads": {"hay": 0.5}}, "cart.json: loads.hay must be a whole number, found 0.5"),
        ({"wheels": [], "axles": 0}, "cart.json: axles must be a whole number of at least 1, found 0"),
        ({"wheels": [], "spare": {"inches": 1, "made_of": "glass"}}, "spare.made_of must be one of wood, steel, found"),
        ({"wheels": [], "loads": {"hay": 10**400}}, None),
        ({"wheels": [{"inches": 10**400}]}, "cart.json: wheels.inches must be a number, found 1000"),
    ],
)
def test_what_is_wrong_is_said_and_breaks_the_schema(values: Mapping[str, Any], says: str | None) -> None:
    if says is None:
        read(values)
        assert json_schema_kit.check(values, CART) == []
        return
    with pytest.raises(PolicyError) as caught:
        read(values)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200
    huge = "found 1000" in says  # a schema does not say that some number is too large for a float
    assert huge or json_schema_kit.check(values, CART)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"wheels": [3]}, "wheels must be a list of an object of inches, made_of, found [3]"),
        ({"wheels": [], "spare": {"inches": 1}}, "spare must be an object of inches, made_of, found {'inches': 1}"),
        ({"wheels": [], "axles": True}, "axles must be a whole number of at least 1, found True"),
    ],
)
def test_what_code_makes_is_held_against_the_same_annotations(wrong: dict[str, Any], says: str) -> None:
    check_fields(Cart([Wheel(1.0)], Wheel(2.0)), PolicyError)
    with pytest.raises(PolicyError) as caught:
        check_fields(Cart(**wrong), PolicyError)
    assert str(caught.value) == says
