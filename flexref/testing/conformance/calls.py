"""Which methods of the protocol a clause may call, read from its code without running it; it knows no port."""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from flexref.testing import clauses as folder
from flexref.testing.conformance.watch import METHODS


def calls_of(clause: Any) -> frozenset[str]:
    """Methods that a clause, or what it uses of the clauses' own helpers, names as attributes."""
    seen: set[int] = set()
    return frozenset(_called(clause, seen)).intersection(METHODS)


def _called(function: Any, seen: set[int]) -> Iterator[str]:
    if id(function) in seen:
        return
    seen.add(id(function))
    for part in _functions(function):
        for code in _codes(part.__code__):
            yield from code.co_names
            for name in code.co_names:
                helper = part.__globals__.get(name)
                if _is_ours(helper):
                    yield from _called(helper, seen)


def _functions(of: Any) -> Iterator[FunctionType]:
    """A function, or those of a class."""
    if isinstance(of, FunctionType):
        yield of
    elif inspect.isclass(of):
        yield from (member for member in vars(of).values() if isinstance(member, FunctionType))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_ours(helper: Any) -> bool:
    """Whether it is code of the clauses' folder."""
    is_code = inspect.isfunction(helper) or inspect.isclass(helper)
    return is_code and not isinstance(helper, ModuleType) and str(helper.__module__).startswith(folder.__name__)
