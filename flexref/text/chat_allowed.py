"""What a chat template may use, by name: methods, filters, tests; it runs none of them.

All else of jinja2 and Python is refused, above all what fills with spaces, formats, draws or looks at the clock.
"""

from collections.abc import Mapping
from types import MappingProxyType

from jinja2.runtime import LoopContext

METHODS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        str: frozenset(
            {
                "capitalize",
                "casefold",
                "count",
                "endswith",
                "find",
                "index",
                "isalnum",
                "isalpha",
                "isdecimal",
                "isdigit",
                "islower",
                "isnumeric",
                "isspace",
                "isupper",
                "join",
                "lower",
                "lstrip",
                "partition",
                "removeprefix",
                "removesuffix",
                "replace",
                "rfind",
                "rindex",
                "rpartition",
                "rsplit",
                "rstrip",
                "split",
                "splitlines",
                "startswith",
                "strip",
                "swapcase",
                "title",
                "upper",
            }
        ),
        dict: frozenset({"get", "items", "keys", "values"}),
        list: frozenset({"count", "index"}),
        tuple: frozenset({"count", "index"}),
        LoopContext: frozenset({"changed", "cycle"}),
    }
)
"""The methods that a template may call, by type."""

TEXT_FILTERS = frozenset(
    {
        "capitalize",
        "dictsort",
        "e",
        "escape",
        "float",
        "indent",
        "int",
        "join",
        "lower",
        "max",
        "min",
        "replace",
        "safe",
        "sort",
        "string",
        "title",
        "trim",
        "unique",
        "upper",
    }
)
"""Filters that look at all of a value, however deep; `tojson`, which does so too, is our own."""

FLAT_FILTERS = frozenset(
    {
        "abs",
        "count",
        "d",
        "default",
        "first",
        "items",
        "last",
        "length",
        "list",
        "map",
        "reject",
        "rejectattr",
        "reverse",
        "round",
        "select",
        "selectattr",
    }
)

COMPARING_TESTS = frozenset(
    {
        "!=",
        "<",
        "<=",
        "==",
        ">",
        ">=",
        "eq",
        "equalto",
        "ge",
        "greaterthan",
        "gt",
        "in",
        "le",
        "lessthan",
        "lower",
        "lt",
        "ne",
        "upper",
    }
)
NUMBER_TESTS = frozenset({"divisibleby", "even", "odd"})
FLAT_TESTS = frozenset(
    {
        "boolean",
        "defined",
        "false",
        "float",
        "integer",
        "iterable",
        "mapping",
        "none",
        "number",
        "sameas",
        "sequence",
        "string",
        "true",
        "undefined",
    }
)

FILTERS, TESTS = TEXT_FILTERS | FLAT_FILTERS, COMPARING_TESTS | NUMBER_TESTS | FLAT_TESTS
