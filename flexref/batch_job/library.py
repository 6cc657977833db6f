"""`flexref.batch`: a batch job whose answers are yielded as objects; it knows no command.

Requests are lines of JSON here as in a file, and so what comes of each is what comes of it on the command line.
"""

import os
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from flexref.batch_job.answers import Line
from flexref.batch_job.input_stream import each_marked, file_input
from flexref.batch_job.job import BatchJob
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.prepared import JobSettings, Prepared, PreparedFile, PreparedStream
from flexref.batch_job.recorder import Recorder
from flexref.batch_job.states import Watcher
from flexref.batch_job.stream_recorder import StreamRecorder
from flexref.errors import BatchError, StorageError
from flexref.policy import BUDGETS, Asked, Policy
from flexref.storage.names import called, resolve
from flexref.units import plain_integers

AnyRequest = str | Sequence[int] | Mapping[str, Any]
"""A prompt as text or token ids, or an object: a line of the OpenAI batch format, or one with a `prompt`."""

THE_CALLERS = "requests of a program"
"""What the input is called where it is no file."""

DECODER = msgspec.json.Decoder()


def batch(  # noqa: PLR0913 - a front door names all that can be asked for
    requests: Iterable[AnyRequest] | str | os.PathLike[str],
    *,
    model: str | Path,
    output: str | Path | None = None,
    errors: str | Path | None = None,
    force: bool = False,
    accept_changed_machine: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    created: int = 0,
    model_name: str | None = None,
    policy: Policy | None = None,
    keep: Mapping[str, Any] | None = None,
    machine: str | None = None,
    backend: str = "numpy",
    watchers: Sequence[Watcher] = (),
    **options: Any,
) -> Generator[dict[str, Any], None, None]:
    """The answer to every request, in their order, as `flexref batch` writes it; nothing is done before the first.

    `requests`: texts, lists of token ids, objects, or the path of a file (a single text is taken for one). Of an
    iterable no more is taken than 256 or a few blocks of rows ahead, and nothing is held of what is answered.

    With `output` an answer is yielded when it is durable there, and the same call goes on where an earlier one ended:
    answers from before come first. An iterable is read to its end, then, before the first row runs. `errors`, `force`
    and all settings are the command's; `policy`, `keep`, `machine`, `backend` and `options` (budgets, `mirror`,
    `graphs`, those of the port) are those of `flexref.load`.

    A request that cannot be served is answered with its `error`. Closed early, the job stops in order, after the pass
    that is under way; nothing of it stays. Raises what `flexref.load` and `Engine.run` raise, `BatchError` for a
    request that is no JSON and for an output of another job, `StorageError` for files, and what the iterable raises.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    name = model_name or called(model)
    budgets = {name: options.pop(name) for name in BUDGETS if name in options}
    defaults = Defaults(max_tokens, temperature, top_k, top_p, seed, stops, ignore_eos, name, created)
    asked = Asked(policy, dict(keep or {}), budgets)
    mirror, graphs = options.pop("mirror", None), options.pop("graphs", True)
    prepared = Prepared(
        JobSettings(model, backend, asked, machine, defaults, mirror=mirror, options=options, graphs=graphs)
    )
    if output is None:
        if errors is not None:
            raise BatchError(f"errors ({errors}) need an output that they are kept beside")
        yield from _passing(prepared, requests, watchers)
        return
    with ExitStack() as stack:
        path = Path(requests) if isinstance(requests, str | os.PathLike) else None
        inputs = (Path(resolve(model)), *(() if path is None else (path,)))
        files = JobFiles(Path(output), None if errors is None else Path(errors), inputs)
        files.check()
        durable = PreparedFile(prepared, path or _spooled(requests, stack, Path(output).absolute().parent))
        recorder = stack.enter_context(durable.recorder(files, force=force, accept_arithmetic=accept_changed_machine))
        facts = durable.facts(recorder, files)
        if path is None:
            facts = replace(facts, input=THE_CALLERS)
        written = stack.enter_context(closing(WrittenAnswers(recorder, files, durable.expected)))
        yield from written
        job = BatchJob(prepared.engines(), durable.lines(recorder), recorder, facts, watchers)
        with closing(job.running()) as answers:
            for _ in answers:
                yield from written
        yield from written


def _passing(
    prepared: Prepared, requests: Iterable[AnyRequest] | str | os.PathLike[str], watchers: Sequence[Watcher]
) -> Generator[dict[str, Any], None, None]:
    """The answers of a job that is kept nowhere."""
    with ExitStack() as stack:
        source, lines, as_json = THE_CALLERS, _lines(requests), True
        if isinstance(requests, str | os.PathLike):
            source = os.fspath(requests)
            read = stack.enter_context(file_input(source))
            lines, as_json = iter(read), read.as_json
        answered = _Answered()
        stream = PreparedStream(prepared, lines, StreamRecorder(answered), as_json=as_json)
        job = stream.job(source, "the program", watchers)
        with closing(job.running()) as answers:
            for _ in answers:
                yield from answered.taken()
        yield from answered.taken()


class _Answered:
    """A stream of answers that are taken at once."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()

    def write(self, data: bytes) -> int:
        """Take an answer."""
        self._waiting.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> Iterator[dict[str, Any]]:
        """What was written since the last call."""
        while self._waiting:
            yield DECODER.decode(self._waiting.popleft())


class WrittenAnswers:
    """The answers that a recorder has written to its files, in the order of the input; it may be iterated again."""

    def __init__(self, recorder: Recorder, files: JobFiles, expected: Iterable[int]) -> None:
        """Raises `StorageError` if the files cannot be read."""
        self._recorder, self._expected = recorder, iter(expected)
        self._next = next(self._expected, None)
        self._output = _reading(files.output)
        self._errors = self._output if files.errors is None else _reading(files.errors)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Those that were written since the last one."""
        while self._next is not None and self._next <= self._recorder.written_line:
            failed = self._recorder.has_failed(self._next)
            line = (self._errors if failed else self._output).readline()
            self._next = next(self._expected, None)
            yield DECODER.decode(line)

    def close(self) -> None:
        """Give the files back."""
        self._output.close()
        self._errors.close()


def _reading(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _lines(requests: Any) -> Iterator[Line]:
    """The requests as lines; one whose custom_id an earlier one has is marked."""
    numbered = enumerate(requests, start=1)
    yield from each_marked(Line(number, _encoded(request, number)) for number, request in numbered)


def _spooled(requests: Any, stack: ExitStack, folder: Path) -> Path:
    """A file in `folder` that has no name, and is gone with this process, with all requests as lines."""
    try:
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
    except OSError as error:
        raise StorageError(f"cannot write requests to {folder}: {error.strerror}") from error
    for number, request in enumerate(requests, start=1):
        data = _encoded(request, number)
        try:
            file.write(data + b"\n")
        except OSError as error:
            raise StorageError(f"cannot write requests to {folder}: {error.strerror}") from error
    file.flush()
    return Path(f"/proc/self/fd/{file.fileno()}")


def _encoded(request: Any, number: int) -> bytes:
    """A request as a line of JSON."""
    value = request
    if not isinstance(request, Mapping):
        value = {"prompt": request if isinstance(request, str) else _token_ids(request, number)}
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError) as error:
        raise BatchError(f"request {number} cannot be written as JSON: {' '.join(str(error).split())}") from error


def _token_ids(request: Any, number: int) -> tuple[Any, ...]:
    if isinstance(request, Iterable) and not isinstance(request, bytes | bytearray):
        return plain_integers(tuple(request))
    found = type(request).__name__
    raise BatchError(f"request {number} must be text, token ids or an object, found {found}")


def _plain(value: Any) -> Any:
    """What numpy holds, in Python's own types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} is no type of JSON")
