"""Answers the lines of a job on the workers of a Dask scheduler; it knows no file, and no engine but by how it opens.

Leases decide who works on what (`leases`); Dask carries chunks there and answers back, and says who is there.
"""

import asyncio
import logging
import queue
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.cluster.leases import Chunk, Leases
from flexref.batch_job.cluster.worker import ChunkResult, OpenServer, facts_of, open_server, said_of, serve_chunk
from flexref.errors import BatchError, how_many

if TYPE_CHECKING:
    from distributed import Client, Future

LOG = logging.getLogger(__name__)

POLL_S = 0.2
"""So often it is asked who is there, and the caller has its turn."""

FETCH_S = 5.0
"""So long is waited for answers that lie on a worker; then it is asked whether it is still there."""

Happened = Callable[[str, str], object]
"""Told the kind of what happened (`states.JobEvent`), and a line of words."""


@dataclass(frozen=True, slots=True)
class SentChunk:
    """A chunk that was sent to a worker, and what will come of it."""

    worker: str
    chunk: Chunk
    future: "Future[ChunkResult]"


class ClusterServing:
    """A job's lines, as `leases` has them, on a cluster's workers. `opening` opens the server of each, there."""

    def __init__(self, client: "Client", opening: OpenServer, leases: Leases, happened: Happened) -> None:
        self._client, self._opening, self._leases, self._happened = client, opening, leases, happened
        assert client.scheduler is not None  # it is connected
        self._address = client.scheduler.address
        self._name = f"flexref-{uuid.uuid4().hex}"
        self._tasks = 0
        self._warm: dict[str, Any] = {}
        self._sent: list[SentChunk] = []
        self._ended: queue.SimpleQueue[SentChunk] = queue.SimpleQueue()
        self._looked_s = 0.0
        self._alone = False

    def run(self, is_stopping: Callable[[], bool]) -> Generator[LineAnswer | None, None, None]:
        """The answers as they come; None where the caller has its turn, after every chunk and while nothing comes.

        Once `is_stopping` says so nothing more is begun: what has come so far is given, and the rest is given up.
        Raises `BatchError` if the scheduler is lost, no worker is fit for work, or a line cannot be worked on.
        """
        try:
            while not is_stopping():
                self._look_who_is_there()
                for worker, chunk in self._leases.due():
                    self._send(worker, chunk)
                if self._leases.finished:
                    return
                try:
                    sent = self._ended.get(timeout=POLL_S)
                except queue.Empty:
                    yield None
                    continue
                yield from self._answers(sent)
                yield None
            while not self._ended.empty():
                yield from self._answers(self._ended.get())
        finally:
            self._give_up(self._sent)
            self._sent = []
            self._warm.clear()

    def _look_who_is_there(self) -> None:
        """Lease anew what workers had that are gone."""
        if time.monotonic() - self._looked_s < POLL_S:
            return
        self._check_scheduler()
        try:
            present = self._client.nthreads()
        except Exception as error:  # whatever the network and Dask's layers make of it
            raise BatchError(f"{self._lost()}: {said_of(error)}") from error
        self._looked_s = time.monotonic()
        new = [worker for worker in present if worker not in self._leases.workers]
        had = dict[str, list[str]]()
        for worker, chunk in self._leases.leased():
            had.setdefault(worker, []).append(chunk.in_words)
        for worker in self._leases.update(list(present)):
            again = f": {' and '.join(had[worker])} are given to others" if worker in had else ""
            self._happened("fault", f"worker {worker} is lost{again}")
            self._give_up([sent for sent in self._sent if sent.worker == worker])
            self._sent = [sent for sent in self._sent if sent.worker != worker]
            self._warm.pop(worker, None)
        if new:
            self._happened("worker", f"{how_many(len(present), 'worker')} at work, new: {', '.join(new)}")
        elif not present and not self._alone:
            self._happened("warning", "there is no worker: the job goes on when one comes")
        self._alone = not present

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise BatchError(self._lost())

    def _lost(self) -> str:
        return f"the Dask scheduler {self._address} is lost; give the same command again when it is there"

    def _send(self, worker: str, chunk: Chunk) -> None:
        if worker not in self._warm:
            self._warm[worker] = self._submit(worker, open_server, self._opening)
        sent = SentChunk(worker, chunk, self._submit(worker, serve_chunk, self._warm[worker], chunk.lines))
        self._sent.append(sent)
        sent.future.add_done_callback(lambda future: self._ended.put(sent))

    def _submit(self, worker: str, task: Callable[..., Any], *arguments: Any) -> Any:
        self._tasks += 1
        key = f"{self._name}-{self._tasks}"
        return self._client.submit(
            task, *arguments, key=key, workers=[worker], allow_other_workers=False, pure=False, priority=-self._tasks
        )

    def _answers(self, sent: SentChunk) -> Iterator[LineAnswer]:
        """The answers of a chunk that has ended, if they count; else it is leased again."""
        if sent not in self._sent:
            return
        try:
            result = sent.future.result(timeout=FETCH_S)
        except asyncio.TimeoutError:  # another one than Python's own before 3.11
            self._looked_s = 0.0  # the worker may be lost, and the answers with it
            self._ended.put(sent)
            return
        except Exception as error:
            self._check_scheduler()  # it would have cancelled everything
            LOG.debug("worker %s", sent.worker, exc_info=True)
            result = ChunkResult((), said_of(error))
        self._sent.remove(sent)
        sent.future.release()
        if result.failure is not None:
            self._happened("fault", f"worker {sent.worker}, {sent.chunk.in_words}: {result.failure}")
            self._warm.pop(sent.worker, None)
            self._leases.failed(sent.worker, sent.chunk, result.failure)
        elif self._leases.done(sent.worker, sent.chunk):
            yield from result.answers

    def _give_up(self, sent: Iterable[SentChunk]) -> None:
        """Nobody wants these any more: workers that are at them stop after a pass."""
        futures = [each.future for each in sent]
        if futures:
            with suppress(Exception):  # who cannot be reached does nothing for us either
                self._client.cancel(futures, force=True)


def facts_of_a_worker(client: "Client", opening: OpenServer, happened: Happened) -> Any:
    """What the first worker that comes says of its engine (`EngineServer.facts`); `BatchError` if it has none."""
    if not client.nthreads():
        happened("warning", "there is no worker: the job begins when one comes")
    client.wait_for_workers(1)
    try:
        facts, failure = client.submit(facts_of, opening, pure=False).result()
    except Exception as error:  # whatever Dask makes of a worker without flexref, or with another one
        raise BatchError(f"a worker cannot open its engine: {said_of(error)}") from error
    if failure is not None:
        raise BatchError(f"a worker cannot open its engine: {failure}")
    return facts
