"""Calls that do not need each other, in several processes at once; it knows nothing of what they do."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from time import perf_counter
from typing import Any, TypeVar

from flexref.errors import FlexrefError

Result = TypeVar("Result")

POOL_FROM_S = 1.5
"""If the first call takes longer, the others get processes, each of which takes about so many seconds to be ready."""


def side_by_side(
    work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], *, pool_from_s: float = POOL_FROM_S
) -> Iterator[Result]:
    """The results of `work` for the arguments of every call, in their order, as soon as all before them are there.

    The first is computed here; if it takes long, the others on as many cores as this process may use. Raises what the
    first failing call raises, and `FlexrefError` if a process ends by itself. However it ends, no process is left.
    """
    start = perf_counter()
    for call in calls[:1]:
        yield work(*call)
    rest = calls[1:]
    processes = min(len(os.sched_getaffinity(0)), len(rest))
    if processes < 2 or perf_counter() - start < pool_from_s:
        for call in rest:
            yield work(*call)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_leave_interrupts_to_the_parent)
    try:
        for promised in [pool.submit(work, *call) for call in rest]:
            yield promised.result()
    except BrokenProcessPool as error:
        raise FlexrefError("a process that was at work has been ended, maybe for want of memory") from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)  # its own thread is who joins them


def _leave_interrupts_to_the_parent() -> None:
    """A terminal sends Ctrl-C to all processes; the one that was called ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
