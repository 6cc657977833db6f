"""Clauses of the contract on one port, each with its verdict, its law and its source; it needs hypothesis."""

import inspect
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis.configuration import set_hypothesis_home_dir, storage_directory

from flexref.backend.protocol import Backend
from flexref.errors import WrongCall, described
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.contract import CONTRACT, PARTS, Clause, clause_name, clauses_for, violation

LONGEST_ERROR = 400
"""Characters of an error that are shown: a clause's own takes less, what a port raises may be of any length."""

NAMES_SHOWN = 4
"""Clauses that an unknown name may have meant."""

HERE = Path(__file__).parent
"""Frames of files in here are a clause's, all below them the port's."""

CLAUSES: Mapping[str, Any] = {
    **{clause_name(clause): clause for clause in CONTRACT},
    a_closed_port_is_done_and_takes_no_work.__name__: a_closed_port_is_done_and_takes_no_work,
}
"""Every clause by its name; the last takes a port that it makes and closes itself."""

LIST = "all"
"""In place of a clause's name: every clause."""

NEEDED_BY = {
    "structure": "every port",
    "values": "ports that compute (`caps.computes`)",
    "overlap": "ports that compute and whose lanes run beside operators (`caps.overlaps_copies`)",
    "host attention": "ports that compute and attend on the host (`caps.attends_on_host`)",
    "row invariance": "ports that compute and give a row bits of its own (`caps.row_invariant`)",
    "shared prefixes": "ports that compute and take prefixes of rows (`caps.shares_prefixes`)",
    "recordings": "ports that compute and record operators (`caps.replays`)",
}
"""Who must pass the clauses of a part of the contract."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clause: `applies` by the port's capabilities; `error`: its first violation in one line, None if it passed.

    `law`: what the clause asks, in one line.
    """

    clause: str
    applies: bool
    law: str
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its name, whether it applies, its law, whether it passed, and the error."""
        return {**asdict(self), "passed": self.applies and self.error is None}


def verdicts(port: Backend, examples: int, clauses: Sequence[Clause] = CONTRACT) -> Iterator[Verdict]:
    """Each of the clauses as soon as it is decided, by as many examples; nothing is left in the working folder."""
    needed = clauses_for(port.caps)
    with kept_nowhere():
        for clause in clauses:
            name, law = clause_name(clause), law_of(clause)
            if clause not in needed:
                yield Verdict(name, applies=False, law=law)
                continue
            error = violation(port, clause, examples)
            line = None if error is None else violation_line(error)[:LONGEST_ERROR]
            yield Verdict(name, applies=True, law=law, error=line)


@contextmanager
def kept_nowhere() -> Iterator[None]:
    """Meanwhile what hypothesis keeps of the modules it has read lies in a folder that goes away, and not in `.`."""
    usual = storage_directory(intent_to_write=False).home_directory
    with TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(usual)


def law_of(clause: Any) -> str:
    """A clause's docstring in one line."""
    return " ".join(str(clause.__doc__).split())


def violation_line(error: BaseException) -> str:
    """What is wrong, in one line: what a clause says itself, or where in it the port raised or gave what is no use."""
    if isinstance(error, AssertionError):
        return described(error)
    parts = getattr(error, "exceptions", ())
    if parts:  # hypothesis groups what it cannot repeat
        return f"not every run of the same call breaks it; one says: {violation_line(parts[0])}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [place for place, frame in enumerate(frames) if HERE in Path(frame.filename).parents]
    if not own:
        return described(error)
    frame = frames[own[-1]]
    where = f"where the clause has `{frame.line}` ({Path(frame.filename).name}, line {frame.lineno})"
    if own[-1] == len(frames) - 1:
        return f"what the port gave does not serve: {described(error)} {where}"
    return f"the port raised {described(error)} {where}"


def explanation(name: str) -> str:
    """A clause's law, who must pass it, and its source; of `LIST` the law of each.

    Raises `WrongCall` for an unknown name, with those that are near.
    """
    if name == LIST:
        return "\n".join(f"{name}\n    {law_of(clause)}" for name, clause in CLAUSES.items())
    if name not in CLAUSES:
        raise WrongCall(f"no clause is called {name!r:.60}{_near(name, CLAUSES)}")
    clause = CLAUSES[name]
    who = "every port; its test gives it a port that nobody uses afterwards"
    for part, members in PARTS.items():
        if clause in members:
            who = NEEDED_BY[part]
    source, first = inspect.getsourcelines(clause)
    place = Path(inspect.getfile(clause)).relative_to(HERE.parents[1])
    return f"{name}\n\n{inspect.getdoc(clause)}\n\nNeeded of: {who}\nSource: {place}, line {first}\n\n{''.join(source)}"


def matching(words: Sequence[str]) -> tuple[Clause, ...]:
    """The clauses whose names hold one of the words; `WrongCall` for a word that none holds, with what is near."""
    found = names_holding(words, list(map(clause_name, CONTRACT)))
    return tuple(clause for clause in CONTRACT if clause_name(clause) in found)


def names_holding(words: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Those names of clauses that hold one of the words; `WrongCall` as of `matching`."""
    for word in words:
        if not any(word in name for name in names):
            raise WrongCall(f"no clause's name holds {word!r:.60}{_near(word, names)}")
    return tuple(name for name in names if any(word in name for word in words))


def _near(name: str, names: Iterable[str]) -> str:
    """Which names may have been meant."""
    wanted = name.lower().replace("-", "_").replace(" ", "_")[:200]
    words = [word for word in wanted.split("_") if len(word) > len("the")]
    known = list(names)
    close = get_close_matches(wanted, known, n=NAMES_SHOWN, cutoff=0.5)
    # A mistyped word is near to a word of a name, not to the name.
    holding = [one for one in known if any(get_close_matches(word, one.split("_"), n=1, cutoff=0.75) for word in words)]
    found = list(dict.fromkeys([*close, *holding]))[:NAMES_SHOWN]
    return f"; near: {', '.join(found)}" if found else f"; `flexref check --explain {LIST}` shows all"
