"""What JSON values may be: each type checks values, and says the same in JSON Schema (2020-12); it knows no format."""

import re
from collections.abc import Callable, Mapping
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
    """A text; with `filled` one that is more than white space."""

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
        return f"one of {', '.join(self.values)}"

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
        return is_integer(value) and _lies_in(value, self.least, self.most)

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
        return is_finite(value) and _lies_in(value, self.least, self.most)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> float:
        return float(JsonType.read(self, what, value, wrong))

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "number", **_bounds(self.least, self.most)}


@dataclass(frozen=True, slots=True)
class Positive(JsonType):
    """A finite number above 0; read as a float."""

    needed: str = "a number above 0"

    def takes(self, value: object) -> bool:
        return is_finite(value) and value > 0

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> float:
        return float(JsonType.read(self, what, value, wrong))

    def schema(self, defined: Defined) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum": 0}


@dataclass(frozen=True, slots=True)
class ReadBy(JsonType):
    """What `reader` makes of a name and a value, raising for itself; `kind` describes it, by `title` among schemas."""

    kind: JsonType
    reader: Callable[[str, Any], Any]
    title: str = ""
    about: str = ""

    @property
    def needed(self) -> str:  # type: ignore[override]
        return self.kind.needed

    def takes(self, value: object) -> bool:
        return self.kind.takes(value)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> Any:
        return self.reader(what, value)

    def schema(self, defined: Defined) -> dict[str, Any]:
        if not self.title:
            return self.kind.schema(defined)
        if self.title not in defined:
            defined[self.title] = {"title": self.title, "description": self.about, **self.kind.schema(defined)}
        return {"$ref": f"#/$defs/{self.title}"}


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


@dataclass(frozen=True, slots=True)
class ListOf(JsonType):
    """A list of `least` to `most` values of `kind`, where bounds are given; read as a tuple."""

    kind: JsonType
    least: int | None = None
    most: int | None = None
    said: str = ""

    @property
    def needed(self) -> str:  # type: ignore[override]
        return self.said or f"a list of {self.kind.needed}"

    def takes(self, value: object) -> bool:
        if not isinstance(value, list | tuple) or not _lies_in(len(value), self.least, self.most):
            return False
        return all(self.kind.takes(item) for item in value)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not _lies_in(len(value), self.least, self.most):
            raise wrong(f"{what} must be {self.needed}, found {shown(value)}")
        return tuple(self.kind.read(what, item, wrong) for item in value)

    def schema(self, defined: Defined) -> dict[str, Any]:
        bounds = {"minItems": self.least, "maxItems": self.most}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return {"type": "array", "items": self.kind.schema(defined), **given}


@dataclass(frozen=True, slots=True)
class MapOf(JsonType):
    """An object whose values are of `kind`, by any name, one of `known`, or one that `pattern` matches as a whole.

    `needs` are names that must be there; a complaint calls a name `noun`.
    """

    kind: JsonType
    known: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    pattern: str = ""
    noun: str = "name"
    needed: str = "a JSON object"

    def takes(self, value: object) -> bool:
        return isinstance(value, Mapping) and not self._wrong(value) and all(map(self.kind.takes, value.values()))

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise wrong(f"{what} must be {self.needed}, found {shown(value)}")
        if complaint := self._wrong(value):
            raise wrong(f"{what}{complaint}")
        return {name: self.kind.read(f"{what}.{name}", part, wrong) for name, part in value.items()}

    def _wrong(self, given: Mapping[str, object]) -> str:
        """What is wrong with the names, after what they are the names of; empty if nothing is."""
        for name in given:
            if self.known and name not in self.known:
                return f": unknown {self.noun} {shown(name)}; known: {', '.join(self.known)}"
            if self.pattern and not re.fullmatch(self.pattern, name):
                return f" must be named by {self.noun}, found {name[:LONGEST_SHOWN]!r}"
        return next((f" lacks {name!r}" for name in self.needs if name not in given), "")

    def schema(self, defined: Defined) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": self.kind.schema(defined)}
        if self.known:
            schema["propertyNames"] = {"enum": list(self.known)}
        elif self.pattern:
            schema["propertyNames"] = {"pattern": f"^{self.pattern}$"}
        return {**schema, "required": list(self.needs)} if self.needs else schema


def shown(value: object) -> str:
    """`value` as a complaint repeats it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _lies_in(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or least <= value) and (most is None or value <= most)


def _between(least: float | None, most: float | None) -> str:
    """The bounds in words, after what they bound."""
    if least is None or most is None:
        return "" if least is None else f" of at least {least:g}"
    return f" from {least:g} to {most:g}"


def _bounds(least: float | None, most: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in (("minimum", least), ("maximum", most)) if bound is not None}
