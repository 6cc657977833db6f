"""Shared by tests of what is read from JSON: the places in a tree of values, and a tree changed at one of them."""

from typing import Any


def places(values: Any, path: tuple[Any, ...] = (), *, items: int = 2) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON tree; of lists, of their first `items` items."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = list(enumerate(values[:items]))
    return [path, *(place for key, value in inner for place in places(value, (*path, key), items=items))]


def replaced(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON tree with another value at `path`."""
    if not path:
        return new
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = replaced(values[path[0]], path[1:], new)
    return copy
