"""Settings of a library that hold for its whole process, changed while any thread needs it; it knows no library."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any


class WhileInside:
    """`with` it, any thread, several at once: the first one in changes settings, and the last one out undoes that."""

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        """`change` gives what undoes it."""
        self._change, self._one, self._within = change, threading.Lock(), 0

    @classmethod
    def of(cls, make: Callable[[], AbstractContextManager[object]]) -> "WhileInside":
        """Settings that a library changes by a context manager of its own, which `make` makes."""

        def change() -> Callable[[], object]:
            context = make()
            context.__enter__()
            return partial(context.__exit__, None, None, None)

        return cls(change)

    def __enter__(self) -> None:
        with self._one:
            if not self._within:
                self._undo = self._change()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._one:
            self._within -= 1
            if not self._within:
                self._undo()


def put_back(owner: object, name: str, before: Any, inherits: Any) -> None:
    """Let a setting be what it was: by `inherits`, with which it is what a more general one says, if that does it."""
    setattr(owner, name, inherits)
    if getattr(owner, name) != before:
        setattr(owner, name, before)
