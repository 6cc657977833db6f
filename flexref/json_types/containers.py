"""Types of JSON lists and of objects by any names, made of types of values; it knows no format."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flexref.errors import FlexrefError
from flexref.json_types.values import LONGEST_SHOWN, Defined, JsonType, lies_in, shown


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
        if not isinstance(value, list | tuple) or not lies_in(len(value), self.least, self.most):
            return False
        return all(self.kind.takes(item) for item in value)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not lies_in(len(value), self.least, self.most):
            raise wrong(f"{what} must be {self.needed}, found {shown(value)}")
        return tuple(self.kind.read(what, item, wrong) for item in value)

    def schema(self, defined: Defined) -> dict[str, Any]:
        bounds = {"minItems": self.least, "maxItems": self.most}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return {"type": "array", "items": self.kind.schema(defined), **given}


@dataclass(frozen=True, slots=True)
class Pair(JsonType):
    """A list of two values."""

    first: JsonType
    second: JsonType

    @property
    def needed(self) -> str:  # type: ignore[override]
        return f"[{self.first.needed}, {self.second.needed}]"

    def takes(self, value: object) -> bool:
        if not isinstance(value, list | tuple) or len(value) != 2:
            return False
        return self.first.takes(value[0]) and self.second.takes(value[1])

    def schema(self, defined: Defined) -> dict[str, Any]:
        parts = [self.first.schema(defined), self.second.schema(defined)]
        return {"type": "array", "prefixItems": parts, "minItems": 2, "maxItems": 2}


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
