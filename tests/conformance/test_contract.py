"""Every installed port against every clause of the contract that its capabilities ask for; it knows no device."""

import inspect
from collections.abc import Iterator

import pytest
from flexref_numpy.backend import MINIMUM_SCRATCH_BYTES, NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend import registry
from flexref.backend.protocol import Backend
from flexref.errors import BackendUnavailable
from flexref.testing import CONTRACT, clause_name, clauses_for
from flexref.testing.clauses import (
    attention,
    cache,
    lanes,
    memory,
    moves,
    pointwise,
    prefixes,
    products,
    recordings,
    sampling,
)
from flexref.testing.contract import PARTS, RECORDINGS, ROW_INVARIANCE, SHARED_PREFIXES, STRUCTURE, VALUES, Clause

TILED = tuple(
    clause
    for clause in (*VALUES, *ROW_INVARIANCE, *SHARED_PREFIXES)
    if inspect.getmodule(clause) in (attention, pointwise, prefixes, products)
)
"""Clauses on operators that the numpy port cuts into tiles, of which its scratch holds one."""


def cases() -> Iterator[object]:
    """(port, clause) for every clause that the port must pass; one skipped case for a port whose device is not here."""
    for name in registry.installed():
        try:
            backend = registry.create(name)
        except BackendUnavailable as error:
            yield pytest.param(name, None, id=name, marks=pytest.mark.skip(reason=str(error)))
            continue
        for clause in clauses_for(backend.caps):
            yield pytest.param(name, clause, id=f"{name}-{clause_name(clause)}")
        backend.close()


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = registry.create(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(("backend", "clause"), list(cases()), indirect=["backend"], scope="module")
@given(data=st.data())
def test_a_port_keeps_the_contract(backend: Backend, clause: Clause, data: st.DataObject) -> None:
    clause(backend, data)


@pytest.fixture(scope="module")
def small_scratch() -> Iterator[Backend]:
    made = NumpyBackend(MINIMUM_SCRATCH_BYTES)
    yield made
    made.close()


@pytest.mark.parametrize("clause", TILED, ids=clause_name)
@given(data=st.data())
def test_the_reference_port_keeps_the_contract_where_operators_need_many_tiles(
    small_scratch: Backend, clause: Clause, data: st.DataObject
) -> None:
    clause(small_scratch, data)


def test_the_reference_port_must_pass_every_clause_but_those_on_recordings() -> None:
    backend = registry.create("numpy")
    assert (*clauses_for(backend.caps), *RECORDINGS) == CONTRACT
    backend.close()


def test_a_port_that_only_counts_must_pass_the_structural_clauses() -> None:
    backend = registry.create("dry")
    assert clauses_for(backend.caps) == STRUCTURE
    backend.close()


def test_the_contract_holds_every_clause_once() -> None:
    assert len(set(CONTRACT)) == len(CONTRACT) == sum(len(clauses) for clauses in PARTS.values())
    written = {
        function
        for module in (attention, cache, lanes, memory, moves, pointwise, prefixes, products, recordings, sampling)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and list(inspect.signature(function).parameters) == ["backend", "data"]
    }
    assert written == set(CONTRACT)


@pytest.mark.parametrize("clause", CONTRACT, ids=clause_name)
def test_a_clause_states_its_law(clause: Clause) -> None:
    assert clause.__doc__ is not None
    assert len(clause.__doc__.split()) >= 8
