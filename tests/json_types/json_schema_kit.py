"""What of JSON Schema (2020-12) our schemas use, as it is defined there: says where a value breaks a schema.

A keyword that is not known here is an error, so that no schema says more than is checked.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == int(value),
}

# Each keyword with the kind of value that it speaks of, and whether such a value keeps it.
SIMPLE: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value, bound: value >= bound),
    "maximum": ("number", lambda value, bound: value <= bound),
    "pattern": ("string", lambda value, pattern: re.search(pattern, value) is not None),
    "minItems": ("array", lambda value, count: len(value) >= count),
    "maxItems": ("array", lambda value, count: len(value) <= count),
    "required": ("object", lambda value, names: set(names) <= set(value)),
}
SILENT = {"$schema", "$id", "$defs", "title", "description", "default", "properties"}


def complaints(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str = "$") -> Iterator[str]:
    """Every place of `value` that breaks `schema`, a part of the document `root`."""
    for word, said in schema.items():
        if word == "type":
            found = [] if TYPES[said](value) else [f"{where}: no {said}: {value!r}"]
        elif word in ("const", "enum"):
            right = any(type(value) is type(each) and value == each for each in ([said] if word == "const" else said))
            found = [] if right else [f"{where}: {value!r} is none of {said}"]
        elif word == "anyOf":
            tried = [list(complaints(value, each, root, where)) for each in said]
            found = [] if not all(tried) else [line for lines in tried for line in lines]
        elif word == "$ref":
            found = list(complaints(value, root["$defs"][said.removeprefix("#/$defs/")], root, where))
        elif word in SIMPLE:
            kind, keeps = SIMPLE[word]
            found = [f"{where}: {word} {said}: {value!r}"] if TYPES[kind](value) and not keeps(value, said) else []
        elif word == "items":
            parts = enumerate(value) if TYPES["array"](value) else ()
            found = [line for at, part in parts for line in complaints(part, said, root, f"{where}[{at}]")]
        elif word == "prefixItems":
            pairs = enumerate(zip(value, said, strict=False)) if TYPES["array"](value) else ()
            found = [line for at, (part, by) in pairs for line in complaints(part, by, root, f"{where}[{at}]")]
        elif word == "propertyNames":
            found = [line for name in names(value) for line in complaints(name, said, root, f"{where} name {name!r}")]
        elif word == "additionalProperties":
            found = list(_members(value, schema, root, where))
        else:
            assert word in SILENT, f"{where}: unknown keyword {word!r}"
            continue
        yield from found


def names(value: Any) -> tuple[str, ...]:
    """The names of an object; none of anything else."""
    return tuple(value) if isinstance(value, dict) else ()


def _members(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with the members of an object, named in `properties` or not."""
    others, known = schema["additionalProperties"], schema.get("properties", {})
    for name in names(value):
        if name in known:
            yield from complaints(value[name], known[name], root, f"{where}.{name}")
        elif others is False:
            yield f"{where}: unknown {name!r}"
        else:
            yield from complaints(value[name], others, root, f"{where}.{name}")


def check(value: Any, document: Mapping[str, Any]) -> list[str]:
    """What is wrong with `value` by a whole schema; empty if nothing is."""
    return list(complaints(value, document, document))
