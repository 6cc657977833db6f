"""Types of JSON values: each checks values, and says the same in JSON Schema (2020-12); it knows no format."""

from dataclasses import dataclass
from typing import Any

from flexref.errors import FlexrefError
from flexref.units import is_finite, is_integer

LONGEST_SHOWN = 60
"""Characters of a wrong value that its complaint repeats."""

Defined = dict[str, dict[str, Any]]
"""Schemas of objects by name, to which others refer."""


class JsonType:
    """A set of JSON values; `needed` says which in words."""

    __slots__ = ()
    needed: str

    def takes(self, value: object) -> bool:
        """Whether the Python value `value` is one of them."""
        raise NotImplementedError

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> Any:
        """`value`, which comes from JSON, as Python code wants it; `wrong` says that `what` is none of them."""
        if not self.takes(value):
            raise wrong(f"{what} must be {self.needed}, found {shown(value)}")
        return value

    def schema(self, defined: Defined) -> dict[str, Any]:
        """It in JSON Schema; the objects in it are added to `defined`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Truth(JsonType):
    """True or false."""

    needed: str = "true or false"

    def takes(self, value: object) -> bool:
        return isinstance(value, bool)

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text(JsonType):
    """A text; with `filled` one that is more than white space. `needed` is the need in words."""

    filled: bool = False
    needed: str = "text"

    def takes(self, value: object) -> bool:
        return isinstance(value, str) and not (self.filled and not value.strip())

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "string", "pattern": r"\S"} if self.filled else {"type": "string"}


@dataclass(frozen=True, slots=True)
class OneOf(JsonType):
    """One of some texts."""

    values: tuple[str, ...]

    @property
    def needed(self) -> str:  # type: ignore[override]
        return f"one of {', '.join(self.values)}" if len(self.values) > 1 else repr(self.values[0])

    def takes(self, value: object) -> bool:
        return isinstance(value, str) and value in self.values

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"const": self.values[0]} if len(self.values) == 1 else {"enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class Whole(JsonType):
    """A whole number from `least` to `most`, where they are given."""

    least: int | None = None
    most: int | None = None
    said: str = ""

    @property
    def needed(self) -> str:  # type: ignore[override]
        return self.said or f"a whole number{_between(self.least, self.most)}"

    def takes(self, value: object) -> bool:
        return is_integer(value) and lies_in(value, self.least, self.most)

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "integer", **_bounds(self.least, self.most)}


@dataclass(frozen=True, slots=True)
class Number(JsonType):
    """A finite number from `least` to `most`, where they are given; read as a float."""

    least: float | None = None
    most: float | None = None

    @property
    def needed(self) -> str:  # type: ignore[override]
        return f"a number{_between(self.least, self.most)}"

    def takes(self, value: object) -> bool:
        return is_finite(value) and lies_in(value, self.least, self.most)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> float:
        return float(JsonType.read(self, what, value, wrong))

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "number", **_bounds(self.least, self.most)}


@dataclass(frozen=True, slots=True)
class Maybe(JsonType):
    """A value of `kind`, or null."""

    kind: JsonType

    @property
    def needed(self) -> str:  # type: ignore[override]
        return self.kind.needed

    def takes(self, value: object) -> bool:
        return value is None or self.kind.takes(value)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> Any:
        return None if value is None else self.kind.read(what, value, wrong)

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"anyOf": [self.kind.schema(defined), {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class Either(JsonType):
    """A value of any of `kinds`."""

    kinds: tuple[JsonType, ...]

    @property
    def needed(self) -> str:  # type: ignore[override]
        return " or ".join(kind.needed for kind in self.kinds)

    def takes(self, value: object) -> bool:
        return any(kind.takes(value) for kind in self.kinds)

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"anyOf": [kind.schema(defined) for kind in self.kinds]}


def shown(value: object) -> str:
    """`value` as a complaint repeats it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def lies_in(value: float, least: float | None, most: float | None) -> bool:
    """Whether `value` keeps the bounds that are given."""
    return (least is None or least <= value) and (most is None or value <= most)


def _between(least: float | None, most: float | None) -> str:
    """The bounds in words, after what they bound."""
    if least is None:
        return "" if most is None else f" of at most {_digits(most)}"
    return f" of at least {_digits(least)}" if most is None else f" from {_digits(least)} to {_digits(most)}"


def _digits(bound: float) -> str:
    """A bound in words: every digit of a whole number."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _bounds(least: float | None, most: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in (("minimum", least), ("maximum", most)) if bound is not None}
