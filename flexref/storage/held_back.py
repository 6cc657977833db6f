"""Holds Ctrl-C back while a library in C calls Python, where nothing may be raised; it knows no library."""

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[None]:
    """Meanwhile SIGINT is only noted; afterwards the handler from before acts, once for each until it raises.

    C cannot pass on what a handler raises: h5py makes an error of it, or crashes. Blocks may be nested. In other
    threads than the main one, which alone handles signals, and where no handler of Python's is, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting = []

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number in waiting:
            before(number, inspect.currentframe())
