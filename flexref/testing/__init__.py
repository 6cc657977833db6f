"""Tests for ports and models that anyone may run; nothing at run time needs them, and they need the extra `testing`.

The contract needs hypothesis, and is loaded on its first use; what compares a run with float64 does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexref.testing.contract import CONTRACT, clause_name, clauses_for, violation

__all__ = ["CONTRACT", "clause_name", "clauses_for", "violation"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'flexref.testing' has no attribute {name!r}")
    return getattr(import_module("flexref.testing.contract"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
