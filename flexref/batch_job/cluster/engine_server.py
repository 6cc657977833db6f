"""Answers lines on an engine of its own, which stays open from chunk to chunk: what a worker runs; it knows no cluster.

A worker must compute what the client's other workers compute: its model and its arithmetic are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from threadpoolctl import threadpool_limits

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.engines import Engines
from flexref.batch_job.identity import Identity, arithmetic_facts, model_facts
from flexref.batch_job.request_lines import RequestReader
from flexref.batch_job.serve import AskedRows, Serving
from flexref.engine.engine import Engine
from flexref.errors import BatchError, CapacityError
from flexref.loading import advisor
from flexref.policy import Policy

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EngineOpening:
    """How a worker opens its engine; it can be pickled. `model`: a file or a name, as the worker's machine knows it.

    `reader`: makes of an engine what reads lines. `policy`, `machine`, `keep`, `backend`, `budgets` as `flexref.load`
    has them. `expected`: `EngineServer.facts` of the others, None for the first one; `accept_arithmetic`: only its
    model must be theirs. `blas_threads`: None for as many as the machine says.
    """

    model: str
    reader: Callable[[Engine], RequestReader]
    backend: str = "numpy"
    policy: Policy | None = None
    machine: str | None = None
    keep: Facts = field(default_factory=dict)
    budgets: Facts = field(default_factory=dict)
    expected: tuple[Facts, Facts] | None = None
    accept_arithmetic: bool = False
    blas_threads: int | None = None

    def __call__(self) -> "EngineServer":
        """The server; raises what opening an engine raises, and `BatchError` if it is not what the others are."""
        if self.blas_threads is not None:
            threadpool_limits(self.blas_threads, "blas")
        settling = advisor(self.policy, self.machine, self.keep)
        server = EngineServer(Engines(self.model, settling, self.backend, self.budgets), self.reader)
        try:
            self._check(server)
        except BaseException:
            server.close()
            raise
        return server

    def _check(self, server: "EngineServer") -> None:
        if self.expected is None:
            return
        theirs, own = (Identity({}, model, {}, arithmetic) for model, arithmetic in (self.expected, server.facts))
        differences = own.differences(theirs, arithmetic=not self.accept_arithmetic)
        if differences:
            raise BatchError(f"a worker would not compute what the others do: {'; '.join(differences)}")


class EngineServer:
    """An engine, and after one that ran out of memory the next one."""

    def __init__(self, engines: Engines, reader: Callable[[Engine], RequestReader]) -> None:
        self._engines = engines
        self._engine = engines.open()
        self._reader = reader(self._engine)

    @property
    def facts(self) -> tuple[Facts, Facts]:
        """What tells its model and its arithmetic from others (`identity`)."""
        return model_facts(self._engine.file), arithmetic_facts(self._engine.backend)

    def answers(self, lines: Sequence[Line], on_pass: Callable[[], None]) -> Iterator[LineAnswer]:
        """The answers of lines as they end. Raises what the engine raises: it is of no use then, and must be closed."""
        serving = Serving(self._asked(lines))
        while True:
            try:
                for answer in serving.run(self._engine, on_pass=lambda engine, job: on_pass()):
                    self._engines.gave_an_answer()
                    yield answer
                if not serving.has_set_aside:
                    return
            except (CapacityError, MemoryError) as error:
                if not serving.is_running:
                    raise  # no policy fits: less memory would not help
                self._engines.lower(self._engine, error)
                self._engine.close()
                self._engine = self._engines.open()

    def _asked(self, lines: Sequence[Line]) -> Iterator[AskedRows | LineAnswer]:
        for line in lines:
            asked = self._reader.read(line)
            if asked is not None:
                yield asked

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
