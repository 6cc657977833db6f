"""A Dask cluster of processes on this machine, one engine each; it knows no job. It needs Dask."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster

LOG = logging.getLogger(__name__)

GPUS = Path("/proc/driver/nvidia/gpus")
"""Where a driver lists its devices: to ask it would take memory of one of them."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

CONFIG: Mapping[str, Any] = {
    "distributed.scheduler.work-stealing": False,  # who works on what is decided by the leases
    "distributed.scheduler.worker-ttl": None,  # a worker is gone when its process is, not when it is busy
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.deploy.lost-worker-timeout": "1 day",  # its nanny begins it anew, however long that takes
    "distributed.worker.profile.enabled": False,  # it looks at every thread a hundred times a second
    "distributed.worker.memory.target": False,  # an engine's memory is bounded by its budgets
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}


@contextmanager
def local_workers(count: int, blas_threads: int) -> Iterator[LocalCluster]:
    """So many workers, each begun anew when it dies; all end with this process, however it ends."""
    before = dict(os.environ)
    threads = {f"distributed.nanny.pre-spawn-environ.{name}": blas_threads for name in BLAS_THREADS}
    with dask.config.set({**CONFIG, **threads}):
        try:
            # It tells of what a killed client leaves, and when it is begun it unblocks signals in the thread that does.
            os.environ["PYTHONWARNINGS"] = "ignore"
            resource_tracker.ensure_running()
            os.environ.pop("PYTHONWARNINGS")
            with _Workers() as cluster:
                # Workers inherit what is blocked in the thread that starts them: Ctrl-C on a terminal is for all of its
                # group, and they end when the client says so.
                cluster.sync(_leave_interrupts_to_the_client)
                cluster.scale(count)
                yield cluster
        finally:
            os.environ.clear()  # Dask sets variables of its workers here, too
            os.environ.update(before)


class _Workers(LocalCluster):
    """Each of its workers sees the devices in another order, so that its first one is its own."""

    def __init__(self) -> None:
        self._devices = visible_devices(os.environ)
        super().__init__(  # type: ignore[no-untyped-call]
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            preload=["flexref.batch_job.cluster.quiet"],
        )

    def new_worker_spec(self) -> dict[Any, Any]:
        """What Dask asks for to start one more worker."""
        ((number, worker),) = super().new_worker_spec().items()  # type: ignore[no-untyped-call]
        if not self._devices:
            return {number: worker}
        if number == len(self._devices):
            LOG.warning("there are more workers than devices (%d): some share one", number)
        own = {VISIBLE: ",".join(rotated(self._devices, number))}
        return {number: {**worker, "options": {**worker["options"], "env": own}}}


async def _leave_interrupts_to_the_client() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})


def visible_devices(environment: Mapping[str, str], listed: Path = GPUS) -> list[str]:
    """The devices that workers share, as the variable names them or, if it is not set, numbered as the driver does."""
    if VISIBLE in environment:
        return [name for name in environment[VISIBLE].split(",") if name]
    return [str(number) for number in range(len(list(listed.iterdir())))] if listed.is_dir() else []


def rotated(devices: Sequence[str], number: int) -> list[str]:
    """The devices beginning with that of worker `number`."""
    first = number % len(devices)
    return [*devices[first:], *devices[:first]]
