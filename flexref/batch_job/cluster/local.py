"""Reaches a Dask scheduler: one that runs already, or one of our own with workers on this machine; it knows no job.

Dask prints nothing meanwhile: workers that come and go are told of by who uses them.
"""

import asyncio
import gc
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from flexref.errors import BatchError, WrongCall, install_hint

if TYPE_CHECKING:
    from distributed import Client

LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")

ADDRESS = re.compile(r"(tcp|tls|ucx|ucxx|ws|wss)://\S+")

LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")
"""Those to which Dask gives handlers, and the one that tells of what Dask's own tasks leave."""

CONNECT_S = 30
"""A scheduler that does not answer for so long is not there."""


def is_local(scheduler: str) -> bool:
    """Whether it is one of our own."""
    return LOCAL.fullmatch(scheduler) is not None


def check_scheduler(scheduler: str) -> None:
    """`WrongCall` for what names no scheduler."""
    if not LOCAL.fullmatch(scheduler) and not ADDRESS.fullmatch(scheduler):
        raise WrongCall(
            f"--scheduler must be an address such as tcp://10.0.0.1:8786, or local:N for N workers here, "
            f"found {scheduler!r}"
        )


@contextmanager
def connected(scheduler: str, blas_threads: int = 1) -> Iterator["Client"]:
    """A client of the scheduler; `local:N`: of one with N worker processes, which end with it.

    `blas_threads`: of each worker here; those of a cluster have what their machines say. Raises `BatchError` if Dask is
    not installed or the scheduler cannot be reached.
    """
    check_scheduler(scheduler)
    try:
        import dask  # noqa: PLC0415 - an extra
        import distributed  # noqa: PLC0415
    except ImportError as error:
        raise BatchError(f"--scheduler needs Dask: {install_hint('dask')}") from error
    from flexref.batch_job.cluster.local_workers import local_workers  # noqa: PLC0415 - it needs Dask

    with ExitStack() as stack:
        stack.enter_context(_silent())
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}))
        local = LOCAL.fullmatch(scheduler)
        address: Any = scheduler
        if local is not None:
            address = stack.enter_context(local_workers(int(local[1]), blas_threads))
        try:
            client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            raise BatchError(f"cannot reach the Dask scheduler {scheduler}: {error}") from error
        yield stack.enter_context(client)


@contextmanager
def _silent() -> Iterator[None]:
    """Dask's loggers write to stderr of their own accord, and its warnings are of what is handled here."""
    with warnings.catch_warnings():
        for library in ("distributed", "dask", "tornado"):
            warnings.filterwarnings("ignore", module=rf"{library}\b")
        import distributed  # noqa: F401, PLC0415 - it makes its loggers when it is imported

        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(list(logger.handlers), logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers[:], logger.propagate = [logging.NullHandler()], False
        try:
            yield
        finally:
            gc.collect()  # tasks of Dask's that nobody waited for, of workers that were lost, are told of when they go
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers[:], logger.propagate = handlers, propagate
