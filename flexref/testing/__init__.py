"""Tests for ports and models that anyone may run: `pip install flexref[testing]`; nothing at run time needs it."""

from flexref.testing.contract import CONTRACT, clause_name, clauses_for, violation

__all__ = ["CONTRACT", "clause_name", "clauses_for", "violation"]
