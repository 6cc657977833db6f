"""Tries the contract on mutants, few examples first, and keeps what became of each in a file of JSON lines."""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flexref.errors import FlexrefError
from flexref.testing.conformance.processes import ProcessEnd, run_apart
from mutate_operators_run.hanging import Hanging
from mutate_operators_run.mutant import Mutant
from mutate_operators_run.ports import COMMON, Port, keep_compiled
from mutate_operators_run.trial import CLOSING, MAKING, Kill, Reached, Step, try_mutant, try_unchanged

FIRST_EXAMPLES = (5, 25)
"""Examples of a clause before all: most mutants are killed by the first few."""

UNCHANGED_EXAMPLES = 25
SLOWER = 5.0
"""A mutant hangs that takes so many times what the port takes as it is, and its making, in seconds of the processor."""

KILLED, SURVIVED, EQUIVALENT = "killed", "survived", "equivalent"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant. `clause`: what killed it; `said`: how, or why it is equivalent.

    `examples`: so many of each clause killed it, or it lived through; `words`: those of the names of these clauses.
    """

    port: str
    key: str
    place: str
    owner: str
    kind: str
    outcome: str
    clause: str = ""
    examples: int = 0
    said: str = ""
    seconds: float = 0.0
    words: str = ""

    def holds_for(self, examples: int, words: Sequence[str]) -> bool:
        """Whether so many examples of the clauses that `words` choose need not be tried once more."""
        return self.outcome != SURVIVED or (examples <= self.examples and self.words in ("", " ".join(words)))

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


class Mutating:
    """Trials of the mutants of one port by its contract."""

    def __init__(self, port: Port, examples: int, words: Sequence[str] = ()) -> None:
        """Runs the port as it is; `FlexrefError` if that does not keep the contract. `words`: of the clauses' names."""
        self._port, self._examples, self._words = port, examples, words
        self._reached = {variant: self._unchanged(variant) for variant in port.variants}

    def _unchanged(self, variant: str) -> Mapping[str, Reached]:
        end = run_apart(try_unchanged, (self._port.name, variant, self._words, UNCHANGED_EXAMPLES), 3600.0)
        if end.result is None:
            raise FlexrefError(f"{self._port.name} as it is: {end.how} in {end.told}")
        return dict(end.result)

    def outcomes(self, mutants: Sequence[Mutant], jobs: int) -> Iterator[Outcome]:
        """What becomes of each, as soon as it is known."""
        waiting = iter(mutants)
        with ThreadPoolExecutor(jobs) as pool:
            running: set[Future[Outcome]] = {pool.submit(self.outcome, mutant) for mutant in islice(waiting, jobs)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(self.outcome, mutant) for mutant in islice(waiting, len(done))}
                for one in done:
                    yield one.result()

    def outcome(self, mutant: Mutant) -> Outcome:
        """What becomes of one mutant."""
        words = " ".join(self._words)
        found = Outcome(self._port.name, mutant.key, mutant.place, mutant.owner, mutant.kind, SURVIVED, words=words)
        found = replace(found, examples=self._examples)
        seconds = 0.0
        with TemporaryDirectory(prefix="flexref-mutant-") as folder:
            keep_compiled(self._port.name, Path(folder))
            for examples in (*(few for few in FIRST_EXAMPLES if few < self._examples), self._examples):
                steps = self._steps(mutant, examples)
                if not steps:
                    return replace(found, said=f"no clause runs it within {UNCHANGED_EXAMPLES} examples")
                limit_s = self._port.loading_s + SLOWER * self._seconds(steps)
                arguments = self._port.name, mutant, steps, folder
                end = run_apart(try_mutant, arguments, math.inf, Hanging(limit_s))
                seconds += end.seconds
                kill = _kill_of(end, examples)
                if kill is not None:
                    found = replace(found, outcome=KILLED, clause=kill.clause, examples=examples, said=kill.error)
                    break
        return replace(found, seconds=round(seconds, 2))

    def _steps(self, mutant: Mutant, examples: int) -> tuple[Step, ...]:
        """The clauses that run what is mutated, the cheapest first; empty if none does."""
        steps = []
        for variant, reached in self._reached.items():
            names = [name for name, what in reached.items() if _reaches(what, mutant)]
            names.sort(key=lambda name: (name == CLOSING, reached[name].seconds))
            if names:
                steps.append(Step(variant, examples, tuple(names)))
        return tuple(steps)

    def _seconds(self, steps: Sequence[Step]) -> float:
        """What the port takes as it is."""
        return sum(
            max(1.0, step.examples / UNCHANGED_EXAMPLES) * self._reached[step.variant][name].seconds
            for step in steps
            for name in step.clauses
        )


def _reaches(reached: Reached, mutant: Mutant) -> bool:
    if mutant.file == COMMON:
        return any(place.endswith(".cu") for place in reached.places)
    if mutant.file.endswith(".py") and not mutant.file.startswith("kernels/"):
        return not mutant.owner_line or f"{mutant.file}:{mutant.owner_line}" in reached.places
    return mutant.file in reached.places


def _kill_of(end: ProcessEnd, examples: int) -> Kill | None:
    """What a process that tried a mutant came to: it tells a tuple at its end, before that what is under way."""
    if isinstance(end.told, tuple):
        (kill,) = end.told
        return kill  # type: ignore[no-any-return]
    return Kill(str(end.told or MAKING), examples, f"{end.kind}: {end.how}")


def chosen(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them, drawn evenly: every file in turn gives one, as long as it has any."""
    draw = random.Random(seed)
    by_file: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_file.setdefault(mutant.file, []).append(mutant)
    for members in by_file.values():
        draw.shuffle(members)
    found: list[Mutant] = []
    while len(found) < min(count, len(mutants)):
        found += [members.pop() for members in by_file.values() if members]
    return found[:count]


def read_outcomes(path: Path) -> list[Outcome]:
    """What a file of JSON lines holds, the last line of every mutant; a line that was cut by a kill is left out."""
    found: dict[tuple[str, str], Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            outcome = Outcome(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        found[outcome.port, outcome.key] = outcome
    return list(found.values())


def kept(outcomes: Iterable[Outcome], path: Path) -> Iterator[Outcome]:
    """The same, each written to the file of JSON lines before it is given."""
    with path.open("a", encoding="utf-8") as file:
        for outcome in outcomes:
            file.write(f"{json.dumps(outcome.to_json())}\n")
            file.flush()
            yield outcome
