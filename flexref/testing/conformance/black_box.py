"""What a process notes of its work while it goes on, so that it can be read after the process has died; in a file."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexref.testing.conformance.draws import DrawnValues


class BlackBox:
    """Notes of one process in the file `path`, of the example under way alone."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - it is open as long as the process lives
        self._arrays = 0

    def begin(self) -> None:
        """A new example."""
        self._arrays = 0
        self._note("begin", None)

    def drew(self, drawn: DrawnValues) -> None:
        """The last of these values has just been drawn."""
        self._note("draw", (drawn.values[-1], drawn.arrays[self._arrays :]))
        self._arrays = len(drawn.arrays)

    def calls(self, method: str) -> None:
        """A method of the port is about to be called."""
        self._note("call", method)

    def leaves(self, method: str) -> None:
        """A method of the port ends the process."""
        self._note("leave", method)

    def _note(self, kind: str, content: object) -> None:
        if kind == "begin":
            self._file.seek(0)
            self._file.truncate()
        self._file.write(pickle.dumps((kind, content)))


class BoxNotes:
    """What a box holds, once its process has ended: the draws of the last example, and the method called last."""

    def __init__(self, path: str) -> None:
        self.drawn = DrawnValues()
        self.method: str | None = None
        for kind, content in _notes(Path(path)):
            if kind == "draw":
                self.drawn.values.append(content[0])
                self.drawn.arrays.extend(content[1])
            elif kind == "leave":
                self.method = content
                break
            elif kind == "call":
                self.method = content


def _notes(path: Path) -> Iterator[tuple[str, Any]]:
    """The notes in order; of a process that was killed while it wrote the last one may be cut."""
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)  # written by a process of ours a moment ago
            except (EOFError, pickle.UnpicklingError):
                return
