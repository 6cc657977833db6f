"""Answers lines on an engine of its own, which stays open from chunk to chunk: what a worker runs; it knows no cluster.

A worker must compute what the client's other workers compute: its model and its arithmetic are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from flexref.backend.protocol import Backend
from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.engines import ENGINE_FAILURES
from flexref.batch_job.identity import Identity, arithmetic_facts, model_facts
from flexref.batch_job.prepared import JobSettings, Prepared, requests
from flexref.batch_job.serve import Serving
from flexref.errors import BatchError

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EngineOpening:
    """How a worker opens its engine; it can be pickled. Files are named as the worker's machine knows them.

    `as_json`: whether lines are JSON objects. `expected`: model and arithmetic (`EngineServer.facts`) of the others,
    None where they do not matter yet; `accept_arithmetic`: only the model must be theirs. `blas_threads`: None for as
    many as the worker has.
    """

    settings: JobSettings
    as_json: bool
    expected: tuple[Facts, Facts] | None = None
    accept_arithmetic: bool = False
    blas_threads: int | None = None

    def __call__(self) -> "EngineServer":
        """The server; raises what opening an engine raises, and `BatchError` if it is not what the others are."""
        if self.blas_threads is not None:
            threadpool_limits(self.blas_threads, "blas")
        server = EngineServer(Prepared(self.settings), as_json=self.as_json)
        try:
            self._check(server)
        except BaseException:
            server.close()
            raise
        return server

    def _check(self, server: "EngineServer") -> None:
        self.settings.check_own_bits(server.backend)
        if self.expected is None:
            return
        theirs, own = (Identity({}, model, {}, arithmetic) for model, arithmetic in (self.expected, server.facts))
        differences = own.differences(theirs, arithmetic=not self.accept_arithmetic)
        if differences:
            raise BatchError(f"a worker would not compute what the others do: {'; '.join(differences)}")


class EngineServer:
    """An engine, and after one that failed the next one."""

    def __init__(self, prepared: Prepared, *, as_json: bool) -> None:
        self._engines = prepared.engines()
        self._engine = self._engines.open()
        self._reader = prepared.reader(as_json=as_json)

    @property
    def facts(self) -> tuple[Facts, Facts]:
        """What tells its model and its arithmetic from others (`identity`)."""
        return model_facts(self._engine.file), arithmetic_facts(self._engine.backend)

    @property
    def backend(self) -> Backend:
        """The port of its engine."""
        return self._engine.backend

    def answers(self, lines: Sequence[Line], on_pass: Callable[[], None]) -> Iterator[LineAnswer]:
        """The answers of lines as they end. Raises what the engine raises: it is of no use then, and must be closed."""
        serving = Serving(requests(lines, self._reader))
        while True:
            try:
                yield from self._engines.answers(serving, self._engine, on_pass=lambda engine, job: on_pass())
                return
            except ENGINE_FAILURES as error:
                self._engines.recover(serving, self._engine, error)
                self._engine.close()
                self._engine = self._engines.open()

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
