"""The engine: what a user does with a loaded model, one job at a time; its session holds all that jobs share."""

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend
from flexref.block.tracing.trace import Trace
from flexref.block.watch import OnLogits, OnVisit
from flexref.engine.events import Listeners
from flexref.engine.gate import beside
from flexref.engine.generation import GenerationJob
from flexref.engine.outcomes import generation, results
from flexref.engine.request import AnyPrompt, Request, RowRequest, alike, request_of
from flexref.engine.results import Generation, RowResult, StreamedToken
from flexref.engine.scoring import Listener, ScoredRow, Scores, ScoringJob
from flexref.engine.session import Session
from flexref.engine.tensors import shapes_of
from flexref.policy import Policy
from flexref.storage.weightfile import WeightFile
from flexref.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    # Only for its type: who does not chat needs no jinja2.
    from flexref.text.chat_template import ChatTemplate


class Engine:
    """A model that is ready to generate. Use it as a context manager, or call `close`.

    An engine that is dropped without either is closed then, with a `ResourceWarning`. In a forked process it raises
    `EngineError`.

    It runs one job at a time: a second one is refused with `EngineError`, as is any after `close`. While it works
    Ctrl-C ends a job where nothing is half done, and the engine is ready for the next one (`interrupts`).
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._dropped = weakref.finalize(self, _close_dropped, session, os.getpid())
        self._dropped.atexit = False  # what still lives when the process ends goes with it

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream that is under way and give everything back: see `Session.close`."""
        self.session.close()
        self._dropped.detach()

    @property
    def file(self) -> WeightFile:
        """The weight file."""
        return self.session.file

    @property
    def backend(self) -> Backend:
        """The port that computes."""
        return self.session.backend

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if its file holds one."""
        return self.session.tokenizer

    @property
    def chat_template(self) -> "ChatTemplate | None":
        """The model's chat template; None if its file holds none. `CheckpointError` for one that cannot be used."""
        return None if self.tokenizer is None else self.tokenizer.chat_template

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by its name, in file order; a table that lies in tiles is listed by tile."""
        return shapes_of(self.file)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor of the model in float32, dequantized if it is stored in groups; no budget counts it.

        `tokens` is the whole table that lies in the tiles `tokens/0000` and so on. Raises `UnknownTensor`, a
        `KeyError`, which names those that are called alike.
        """
        return self.session.tensor(name)

    def generate(  # noqa: PLR0913 - as `load`
        self,
        prompts: Sequence[AnyPrompt],
        request: Request | None = None,
        *,
        policy: Policy | None = None,
        trace: Trace | None = None,
        on_token: Callable[[StreamedToken], None] | None = None,
        on_logits: OnLogits | None = None,
        on_visit: OnVisit | None = None,
        on_place: OnVisit | None = None,
        **fields: Any,
    ) -> Generation:
        """Run all prompts and return outputs in their order; see `stream` for what it raises.

        What to do is a `request`, or its fields as keywords: `generate(["The king"], max_new_tokens=5)`. `policy` is
        for this job alone; without one it runs under the engine's, or under one that is chosen for it. For `on_visit`
        every operator is called by itself; `on_place` hears of the same visits, also where they are replayed.
        """
        self.session.gate.check()
        asked = alike(prompts, request_of(request, fields))
        listeners = Listeners(trace, on_logits, on_visit, on_place)
        return generation(GenerationJob(self.session, asked, policy, listeners, all_at_once=True), on_token)

    def stream(
        self, prompts: Sequence[AnyPrompt], request: Request | None = None, **fields: Any
    ) -> Iterator[StreamedToken]:
        """Tokens as they come, of all rows, in the order in which they are chosen; `fields` as in `generate`.

        Raises `PromptError` for a prompt that cannot be served, `CapacityError` if the policy does not fit,
        `WeightFileError` naming the dataset if what is read is damaged, `EngineError` if another job is under way: all
        before the first token. The engine is this stream's until it is read to its end, closed or dropped.
        """
        self.session.gate.check()
        asked = alike(prompts, request_of(request, fields))
        with closing(GenerationJob(self.session, asked, all_at_once=True).run()) as tokens:
            for token in tokens:
                if token is not None:
                    yield token

    def run(self, requests: Iterable[RowRequest], *, policy: Policy | None = None) -> Iterator[RowResult]:
        """Serve a stream of requests, each with its own limits, sampling and stops; results come as their rows end.

        Rows come and go: one that has ended makes room for the next one between two passes. Of the iterator no more is
        taken than a few blocks of rows (`admission.WINDOWS`) ahead of those that are under way; nothing else of it is
        held. A request that cannot be served fails alone, with `RowResult.error`. What the iterator raises is raised
        once the rows that it had given have ended. Raises what `stream` raises, too. The engine is this stream's until
        it is read to its end, closed or dropped.
        """
        self.session.gate.check()
        yield from results(GenerationJob(self.session, requests, policy))

    def score(
        self,
        rows: Sequence[ScoredRow],
        *,
        top: int = 1,
        keep_logits: bool = False,
        listener: Listener | None = None,
    ) -> Scores:
        """The log-probability of every scored token of `rows`, and the `top` most probable ones at its place.

        One pass over the model per block, through the same tiers and groups as generation; no cache outlasts a layer.
        Logits are on the device for a tile of the vocabulary and some tokens at a time; `keep_logits` keeps all of them
        on the host, 4 V bytes for every scored token, which are the caller's and which no budget counts.
        Raises `PromptError` for a row that cannot be scored, and what `stream` raises.
        """
        self.session.gate.check()
        return ScoringJob(self.session, rows, top, keep_logits, listener or Listener()).run()


def _close_dropped(session: Session, process: int) -> None:
    """Close what an engine left that was dropped without `close` in the process that made it.

    It may be collected by a lane's own thread, and closing waits for the lanes: only the main thread does it itself.
    """
    if os.getpid() != process or session.gate.closed:
        return
    try:
        if threading.current_thread() is threading.main_thread():
            session.close()
        else:
            beside(session.close)
    finally:
        warnings.warn("an engine was dropped without close: use it as a context manager", ResourceWarning, stacklevel=2)
