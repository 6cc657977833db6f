"""Dataclasses as JSON objects: their fields checked, read, and published as JSON Schema (2020-12); it knows no format.

`Annotated[int, Whole(1), "what it is"]` says of a field what it may hold, in Python code and in JSON, and what it
means. Where no type is named, the annotation says it: `float` is any number, `X | None` may be null, `Mapping[str, X]`
is an object of any names, and a dataclass one of its fields.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from inspect import cleandoc
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from flexref.errors import FlexrefError
from flexref.json_types.containers import ListOf, MapOf
from flexref.json_types.values import LONGEST_SHOWN, Defined, Either, JsonType, Maybe, Number, Text, Truth, Whole, shown

DIALECT = "https://json-schema.org/draft/2020-12/schema"

PLAIN: Mapping[object, JsonType] = types.MappingProxyType({bool: Truth(), int: Whole(), float: Number(), str: Text()})
"""What annotations say that name no type of ours."""

UNSAID = "unsaid"
"""The default of a member that need not be given, of which nothing more is said."""


class JsonField(NamedTuple):
    """A member of an object: what it may be, what it means, and its value where none is given (MISSING: it must be)."""

    kind: JsonType
    about: str
    default: object = MISSING

    def schema(self, defined: Defined) -> dict[str, Any]:
        """It as a property in JSON Schema."""
        schema = {"description": self.about, **self.kind.schema(defined)}
        return schema if self.default in (MISSING, UNSAID) else {**schema, "default": self.default}


@dataclass(frozen=True, eq=False)
class JsonObject(JsonType):
    """An object of known members, all others refused. `about` says what it is; schemas refer to it by `title`.

    `made` is what it is read as, from its members by name; `said` is the need in words. Complaints join the object's
    name and a member's by `joint`.
    """

    title: str
    about: str
    members: Mapping[str, JsonField]
    made: type[Any] = dict
    said: str = ""
    joint: str = "."

    @property
    def needed(self) -> str:  # type: ignore[override]
        return self.said or f"an object of {', '.join(self.members)}"

    @property
    def required(self) -> list[str]:
        """Names of the members that must be given."""
        return [name for name, member in self.members.items() if member.default is MISSING]

    def takes(self, value: object) -> bool:
        return isinstance(value, self.made)

    def read(self, what: str, value: object, wrong: type[FlexrefError]) -> Any:
        if not isinstance(value, Mapping) or (self.said and not self._has_names_of(value)):
            raise wrong(f"{what} must be {self.needed}, found {shown(value)}")
        self.check_names(what, value, wrong)
        defaults = {name: member.default for name, member in self.members.items() if member.default is not UNSAID}
        return self.made(**{**defaults, **self.read_members(f"{what}{self.joint}", value, wrong)})

    def check_names(self, what: str, value: Mapping[str, Any], wrong: type[FlexrefError]) -> None:
        """`wrong` lists all names unless `value` has those that it must have, and no others."""
        if not self._has_names_of(value):
            found = ", ".join(sorted(value))[:LONGEST_SHOWN]
            raise wrong(f"{what} must have the fields {', '.join(self.members)}, found {found}")

    def _has_names_of(self, value: Mapping[str, Any]) -> bool:
        return set(self.required) <= set(value) <= set(self.members)

    def read_members(
        self, where: str, values: Mapping[str, Any], wrong: type[FlexrefError], noun: str = "field"
    ) -> dict[str, Any]:
        """The members in `values` by name; `wrong` says which is unknown, missing or not what it must be.

        Complaints begin with `where` and call a member `noun`.
        """
        unknown = sorted(set(values) - set(self.members))
        if unknown:
            raise wrong(f"{where}unknown {noun} {shown(unknown[0])}; known: {', '.join(self.members)}")
        missing = [name for name in self.required if name not in values]
        if missing:
            raise wrong(f"{where}{noun} {missing[0]!r} is missing")
        return {name: self.members[name].kind.read(f"{where}{name}", value, wrong) for name, value in values.items()}

    def schema(self, defined: Defined) -> dict[str, Any]:
        if self.title in defined:
            return {"$ref": f"#/$defs/{self.title}"}
        if self.title:
            defined[self.title] = {}  # it comes before the objects in it
        schema = {
            "type": "object",
            "properties": {name: member.schema(defined) for name, member in self.members.items()},
            "required": self.required,
            "additionalProperties": False,
        }
        if not self.title:
            return schema
        defined[self.title] = {"title": self.title, "description": self.about, **schema}
        return {"$ref": f"#/$defs/{self.title}"}


def object_of(cls: Any, *properties: str) -> JsonObject:
    """A dataclass as an object of its fields and of some `properties`, which a reader of JSON is only shown."""
    return _object_of(cls, properties)


@cache
def _object_of(cls: Any, properties: tuple[str, ...]) -> JsonObject:
    hints = get_type_hints(cls, include_extras=True)
    members = {}
    for entry in dataclasses.fields(cls):
        default = entry.default if entry.default_factory is MISSING else UNSAID
        members[entry.name] = JsonField(_kind(hints[entry.name]), _about(hints[entry.name]), default)
    for name in properties:
        getter = getattr(cls, name).fget
        members[name] = JsonField(_kind(get_type_hints(getter)["return"]), _opening(getter.__doc__))
    return JsonObject(cls.__name__, _opening(cls.__doc__), members, cls)


def check_fields(instance: Any, wrong: type[FlexrefError]) -> None:
    """`wrong` names the first field of a dataclass' instance that does not hold what its annotation says."""
    for name, member in object_of(type(instance)).members.items():
        value = getattr(instance, name)
        if not member.kind.takes(value):
            raise wrong(f"{name} must be {member.kind.needed}, found {shown(value)}")


def document(schema_id: str, title: str, kind: JsonType) -> dict[str, Any]:
    """The JSON Schema of values of `kind`, with its identifier and title; every object stands in it once."""
    defined: Defined = {}
    head = {"$schema": DIALECT, "$id": schema_id, "title": title}
    return {**head, **kind.schema(defined), "$defs": defined}


def _about(hint: Any) -> str:
    """The text in an annotation; empty if there is none."""
    return next((part for part in get_args(hint)[1:] if isinstance(part, str)), "")


def _kind(hint: Any) -> JsonType:
    """The values that an annotation allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        named = [part for part in arguments[1:] if isinstance(part, JsonType)]
        if not named:
            return _kind(arguments[0])
        return Maybe(named[0]) if type(None) in get_args(arguments[0]) else named[0]
    if origin in (Union, types.UnionType):
        kinds = tuple(_kind(argument) for argument in arguments if argument is not type(None))
        kind = kinds[0] if len(kinds) == 1 else Either(kinds)
        return Maybe(kind) if type(None) in arguments else kind
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return MapOf(_kind(arguments[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return ListOf(_kind(arguments[0]))
    return PLAIN[hint] if hint in PLAIN else object_of(hint)


def _opening(text: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(cleandoc(text).partition("\n\n")[0].split())
