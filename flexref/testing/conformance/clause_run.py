"""Tries one clause on one port: until it fails, then smaller and smaller; it knows no process and no other clause."""

import ast
import inspect
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from flexref.backend.capabilities import Capabilities
from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.errors import BackendUnavailable, described
from flexref.json_types.values import shown
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.conformance.black_box import BlackBox
from flexref.testing.conformance.blame import FailedCall, failed_call
from flexref.testing.conformance.draws import CaseError, DrawnValues, DrawsEnd, RecordedDraws, RepeatedDraws
from flexref.testing.conformance.processes import Telling
from flexref.testing.conformance.watch import METHODS, MethodUse, WatchedPort, named_in
from flexref.testing.contract import Clause
from flexref.testing.verdicts import CLAUSES, LONGEST_ERROR, kept_nowhere, law_of, violation_line

SHRINK_S = 20.0
"""After its first failure a clause is made smaller for so long at most."""


@dataclass(slots=True)
class ClauseTrial:
    """What became of a clause: `error` in one line, None if it passed; `missing`: the method that is not written.

    `drawn`: the smallest values that break it; `failed`: the call that is wrong there. `stale`: why draws that are
    repeated are not this clause's.
    """

    cases: int = 0
    error: str | None = None
    missing: str | None = None
    stale: str | None = None
    drawn: DrawnValues | None = None
    failed: FailedCall | None = None
    uses: dict[str, MethodUse] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PortSurface:
    """What a port says of itself, and the methods that its class does not have, or has not written yet."""

    caps: Mapping[str, Any]
    devices: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    error: str | None = None
    unavailable: bool = False


class _Enough(KeyboardInterrupt):
    """Ends hypothesis' search from within: it passes every other error on to its own end."""


def facts(box: BlackBox, tell: Telling, backend: str) -> PortSurface:
    """Make the port, ask it, and close it: what it has begun may go on until then."""
    try:
        port = create(backend)
    except BackendUnavailable as error:
        return PortSurface({}, error=str(error), unavailable=True)
    except Exception as error:  # whatever a broken port raises
        return PortSurface({}, error=f"its constructor raised {described(error)}")
    for name, needed in (("name", str), ("caps", Capabilities)):
        if not isinstance(getattr(port, name, None), needed):
            found = f"is {shown(getattr(port, name))}" if hasattr(port, name) else "is not there"
            return PortSurface({}, error=f"its attribute `{name}` {found}, needed a value of type {needed.__name__}")
    absent = tuple(name for name in METHODS if not callable(getattr(port, name, None)))
    unwritten = tuple(name for name in METHODS if name not in absent and is_unwritten(getattr(type(port), name, None)))
    devices: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}
    if "describe" not in (*absent, *unwritten):
        with suppress(Exception):  # the clause on `describe` tells of it
            described_as = port.describe()
            devices, versions = tuple(map(str, described_as.devices)), dict(described_as.versions)
    if "close" not in absent:
        with suppress(Exception):  # the clauses tell of it
            port.close()
    return PortSurface(asdict(port.caps), devices, versions, absent, unwritten)


def is_unwritten(method: Any) -> bool:
    """Whether all that a method does is to raise `NotImplementedError`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # compiled, or made otherwise: then it is written
        return False
    body = getattr(tree.body[0], "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])


def try_clause(box: BlackBox, tell: Telling, backend: str, name: str, examples: int) -> ClauseTrial:
    """The clause `name` on a new port `backend`, by so many examples, always the same ones."""
    clause = CLAUSES[name]
    if clause is a_closed_port_is_done_and_takes_no_work:
        return _try_closing(box, backend)
    port = create(backend)
    with kept_nowhere():
        trial = _ClauseSearch(port, clause, box, tell).run(examples)
    return _closed(port, trial)


def repeat_clause(box: BlackBox, tell: Telling, backend: str, name: str, drawn: DrawnValues) -> ClauseTrial:
    """The clause `name` on a new port `backend`, with what was drawn before."""
    port = create(backend)
    trial, watched = ClauseTrial(cases=1), _Noting(port, box, CLAUSES[name])
    try:
        with watched.comparing():
            CLAUSES[name](watched, RepeatedDraws(drawn))
    except DrawsEnd:  # it failed before this
        pass
    except CaseError as error:
        trial.stale = str(error)
    except Exception as error:  # whatever a broken port raises is a violation
        trial.error, trial.drawn = violation_line(error)[:LONGEST_ERROR], drawn
        trial.failed = failed_call(port, CLAUSES[name], drawn, watched, error)
    trial.uses = watched.uses
    return _closed(port, trial)


def _closed(port: Backend, trial: ClauseTrial) -> ClauseTrial:
    """The trial after the port's end."""
    said = ended_with(port)
    if said is not None and trial.error is None and trial.missing is None:
        trial.error, trial.failed = f"`close` after it raised {said}"[:LONGEST_ERROR], FailedCall("close")
    return trial


def ended_with(port: Backend) -> str | None:
    """Close a port; what that raised, in a line, which it must not where it is written."""
    try:
        port.close()
    except NotImplementedError:  # a clause of its own says so
        pass
    except Exception as error:  # whatever a broken port raises
        return described(error)
    return None


def _try_closing(box: BlackBox, backend: str) -> ClauseTrial:
    trial = ClauseTrial(cases=1)
    made: list[_Noting] = []

    def make() -> Any:
        made.append(_Noting(create(backend), box, a_closed_port_is_done_and_takes_no_work))
        return made[-1]

    try:
        a_closed_port_is_done_and_takes_no_work(make)
    except NotImplementedError:
        trial.missing = made[-1].missing
    except Exception as error:  # whatever a broken port raises is a violation
        trial.error = violation_line(error)[:LONGEST_ERROR]
        trial.failed = FailedCall(made[-1].raising or made[-1].last if made else None)
    trial.uses = made[-1].uses if made else {}
    return trial


class _Noting(WatchedPort):
    """A watched port whose calls are noted in the box."""

    def __init__(self, port: Backend, box: BlackBox, clause: Any) -> None:
        super().__init__(port, named_in(law_of(clause)))
        self.box = box

    def _call(self, name: str) -> None:
        self.box.calls(name)
        super()._call(name)

    def _raised(self, name: str, error: BaseException) -> None:
        super()._raised(name, error)
        if not isinstance(error, Exception):
            self.box.leaves(name)


class _ClauseSearch:
    """hypothesis' search for an example that breaks a clause, and for the smallest."""

    def __init__(self, port: Backend, clause: Clause, box: BlackBox, tell: Telling) -> None:
        self._port, self._clause, self._box, self._tell = port, clause, box, tell
        self._watched, self._until = _Noting(port, box, clause), float("inf")
        self._smallest: tuple[DrawnValues, BaseException] | None = None
        self._last = DrawnValues()
        self._trial = ClauseTrial()

    def run(self, examples: int) -> ClauseTrial:
        """Search, and tell what was found."""
        holds = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )(given(st.data())(self._example))
        trial, found = self._trial, None
        try:
            holds()
        except _Enough:
            found = self._smallest
        except Exception as error:  # whatever a broken port raises is a violation
            found = self._last, error
        trial.uses = self._watched.uses
        if found is None:
            return trial
        trial.drawn, broken = found
        if isinstance(broken, NotImplementedError):
            trial.missing = self._watched.missing
            return trial
        trial.error = violation_line(broken)[:LONGEST_ERROR]
        trial.failed = failed_call(self._port, self._clause, trial.drawn, self._watched, broken)
        return trial

    def _example(self, data: st.DataObject) -> None:
        if time.monotonic() > self._until:
            raise _Enough
        self._box.begin()
        self._watched.begin()
        draws = RecordedDraws(data, self._box.drew)
        self._trial.cases += self._smallest is None
        try:
            with self._watched.comparing():
                self._clause(self._watched, draws)  # type: ignore[arg-type]
        except HypothesisException:  # its own, on the way
            raise
        except Exception as error:  # whatever a broken port raises is a violation
            self._note(draws.drawn, error)
            if isinstance(error, NotImplementedError):
                raise _Enough from error
            raise

    def _note(self, drawn: DrawnValues, error: BaseException) -> None:
        self._last = drawn
        if self._smallest is None:
            self._until = time.monotonic() + SHRINK_S
        if self._smallest is None or drawn.size < self._smallest[0].size:
            self._smallest = drawn, error
            self._tell((violation_line(error)[:LONGEST_ERROR], drawn))
