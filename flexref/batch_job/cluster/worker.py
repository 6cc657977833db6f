"""What a Dask worker does of a batch job: it keeps one engine, and answers chunks of lines on it, one at a time.

The engine is a task's result that never leaves its worker: it goes when the client that asked for it does, however that
ends. It knows no scheduler's client, and which engine it is only by how it is opened.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from flexref.batch_job.answers import Line, LineAnswer
from flexref.errors import FlexrefError, described

LOG = logging.getLogger(__name__)


class GivenUp(Exception):
    """Nobody waits for a chunk any more."""


class LineServer(Protocol):
    """Answers lines on an engine of its own."""

    def answers(self, lines: Sequence[Line], on_pass: Callable[[], None]) -> Iterator[LineAnswer]:
        """The answers of lines as they end, in any order; of blank ones none. What `on_pass` raises ends it."""

    def close(self) -> None:
        """Give the engine back."""


OpenServer = Callable[[], LineServer]
"""Opens a server where it is called; it can be pickled."""


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What comes of a chunk: its answers or, if the engine failed, why."""

    answers: tuple[LineAnswer, ...]
    failure: str | None = None


class WarmServer:
    """A server that stays on its worker. `failure`: why there is none."""

    def __init__(self, server: LineServer | None, failure: str | None = None) -> None:
        self.server, self.failure = server, failure
        self._one_at_a_time = threading.Lock()

    def __reduce__(self) -> Any:
        raise TypeError("an engine stays on its worker")

    def __del__(self) -> None:
        """Its last user is gone: no task has it any more."""
        if self.server is not None:
            self.server.close()

    def serve(self, lines: Sequence[Line], is_wanted: Callable[[], bool]) -> ChunkResult:
        """Answer lines once those before them are answered; it fails if nobody wants them any more."""

        def on_pass() -> None:
            if not is_wanted():
                raise GivenUp("it was given up")

        with self._one_at_a_time:
            if self.server is None or self.failure is not None:
                return ChunkResult((), self.failure)
            try:
                return ChunkResult(tuple(self.server.answers(lines, on_pass)))
            except GivenUp as error:
                return ChunkResult((), str(error))
            except (FlexrefError, OSError, MemoryError) as error:
                self.failure = said_of(error)
                return ChunkResult((), self.failure)


def said_of(error: BaseException) -> str:
    """A failure in one line."""
    return str(error) if isinstance(error, FlexrefError) else described(error)


def open_server(opening: OpenServer) -> WarmServer:
    """Task: open a server, for as long as somebody has its future."""
    try:
        return WarmServer(opening())
    except (FlexrefError, OSError, MemoryError) as error:
        return WarmServer(None, said_of(error))


def facts_of(opening: Callable[[], Any]) -> tuple[Any, str | None]:
    """Task: what a worker's engine says of itself (`facts`), or why it has none."""
    try:
        with closing(opening()) as server:
            return server.facts, None
    except (FlexrefError, OSError, MemoryError) as error:
        return None, said_of(error)


def serve_chunk(warm: WarmServer, lines: Sequence[Line]) -> ChunkResult:
    """Task: answer lines on the worker's engine. It ends early once its future was cancelled, or its client is gone."""
    from distributed import get_worker  # noqa: PLC0415 - an extra, and who runs this has it

    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in ("executing", "long-running")

    return warm.serve(lines, is_wanted)
