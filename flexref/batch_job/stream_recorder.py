"""Writes answers in the order of the input where nothing is durable: to standard output; nothing of it is resumed."""

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from flexref.batch_job.answers import LineAnswer
from flexref.errors import BatchError, StorageError


class AnswerStream(Protocol):
    """What answers are written to."""

    def write(self, data: bytes, /) -> int:
        """Take all of `data`."""

    def flush(self) -> None:
        """Hand over what was written."""


class StreamRecorder:
    """What `Recorder` is, for streams: `expect` names every line that is read, in order, before its answer is added.

    Without `errors` failed lines are answered in `output`, too. Answers that wait for one before them are held.
    """

    def __init__(self, output: AnswerStream, errors: AnswerStream | None = None) -> None:
        self._output, self._errors = output, errors
        self._expected: deque[int] = deque()
        self._waiting: dict[int, LineAnswer] = {}
        self.done_lines = self.failed_lines = self.written_bytes = 0
        self.runs_before = 0
        self.notices: tuple[str, ...] = ()

    def __enter__(self) -> "StreamRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def is_done(self, number: int) -> bool:
        """Never: nothing of a run before is known."""
        return False

    def tokens_of(self, number: int) -> Mapping[int, tuple[int, ...]]:
        """None: see `is_done`."""
        return {}

    def expect(self, number: int) -> None:
        """Line `number` was read, and must be answered."""
        self._expected.append(number)

    def add(self, answer: LineAnswer) -> None:
        """Write the answer to a line, and those that waited for it. `StorageError` if the stream takes no more."""
        self._waiting[answer.number] = answer
        while self._expected and self._expected[0] in self._waiting:
            self._write(self._waiting.pop(self._expected.popleft()))

    def _write(self, answer: LineAnswer) -> None:
        stream = self._errors if answer.failed and self._errors is not None else self._output
        try:
            stream.write(answer.data + b"\n")
        except BrokenPipeError:  # whoever read it has seen enough: the command line knows what that means
            raise
        except OSError as error:
            raise StorageError(f"cannot write an answer: {error.strerror or error}") from error
        self.done_lines, self.failed_lines = self.done_lines + 1, self.failed_lines + answer.failed
        self.written_bytes += len(answer.data) + 1

    def keep_tokens(self, number: int, choice: int, tokens: Sequence[int]) -> None:
        """Nothing is kept."""

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def commit(self) -> None:
        """Hand to the operating system what was written."""
        for stream in (self._output, self._errors):
            if stream is not None:
                stream.flush()

    def finish(self) -> None:
        """`BatchError` if a line has no answer."""
        if self._expected:
            raise BatchError(f"line {self._expected[0]} of the input has no answer: the job cannot end")
        self.commit()

    def close(self) -> None:
        """Hand over what was written; the streams are the caller's."""
        self.commit()
