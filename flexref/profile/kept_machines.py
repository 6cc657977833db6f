"""Keeps what was measured of this machine, and finds it again; it measures nothing itself.

What measures is loaded when something is to be measured: a job that fits on the device asks for no machine.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from threadpoolctl import threadpool_info

from flexref.backend.protocol import Backend
from flexref.errors import FlexrefError
from flexref.files import replace_text
from flexref.machine.machine import FORMAT, Machine
from flexref.machine.names import kept_file
from flexref.machine.quality import DAY_S, age_in_words
from flexref.profile.environment import capacities, versions
from flexref.profile.environment import machine as describe
from flexref.profile.occupation import is_quiet
from flexref.profile.sizes import QUICK_S

LOG = logging.getLogger(__name__)

TOLD_EVERY_S = 1.0
"""A longer measurement says at most this often what it measures."""

BELIEVED_S = 30 * DAY_S
"""So long a kept machine is used that was quiet when it was measured."""

AGAIN_AFTER_S = 600.0
"""A machine that was busy is measured again once it is quiet, but only after so long: some machines are never quiet."""

PROFILE_VERSION = 7
"""Raised when a profile measures other things than before, so that machines kept by older ones are measured anew."""


def measured_machine(
    backend: Backend,
    disk_dir: str | Path,
    *,
    tell: Callable[[str], None] | None = None,
    measure: Callable[..., Machine] | None = None,
    quiet: Callable[[], bool] = is_quiet,
    now: Callable[[], float] = time.time,
) -> Machine:
    """This machine with this port: as kept, or else measured quickly (in five seconds) and then kept.

    A kept machine is measured again if there is a reason (`doubt`) and the machine is `quiet` now. Capacities are
    always what is free now. If nothing can be kept, `tell` is told, and the next call measures again. `measure` takes
    the place of `measure_machine`; `now` gives seconds since 1970. Raises what `measure_machine` raises.
    """
    said = tell or (lambda _: None)
    path = kept_path(backend, disk_dir)
    if path.exists():
        try:
            kept = Machine.read(path)
        except FlexrefError as error:
            said(f"{error}; this machine is measured again")
        else:
            why = doubt(kept, now())
            if why is None or not quiet():
                LOG.info("machine %s: kept in %s", kept.name, path)
                return kept.changed(capacity_bytes=capacities(backend, disk_dir))
            said(f"this machine is measured again: {why}")
    else:
        said(f"this machine is measured once, which takes about {QUICK_S:.0f} seconds")
    return measure_and_keep(backend, disk_dir, said, measure)


def measure_and_keep(
    backend: Backend,
    disk_dir: str | Path,
    said: Callable[[str], None],
    measure: Callable[..., Machine] | None = None,
    quick: bool = True,
    on_part: Callable[[str], None] | None = None,
) -> Machine:
    """Measure this machine and keep the result, in place of an older one; see `measured_machine`.

    `on_part` is told of every part that is measured; without it, `said` is told now and then.
    """
    from flexref.profile.measure import UNMEASURED_DISK, measure_machine  # noqa: PLC0415

    path = kept_path(backend, disk_dir)
    machine = (measure or measure_machine)(backend, disk_dir, quick=quick, on_part=on_part or _now_and_then(said))
    if machine.quality is not None and machine.quality.busy:
        said(f"this machine is busy ({'; '.join(machine.quality.busy)}): it is measured again on a quiet occasion")
    if UNMEASURED_DISK in machine.sources:
        said(f"{disk_dir} cannot be written, so that this machine's disk is assumed and nothing is kept")
        return machine
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(machine.to_mapping()))
        LOG.info("machine %s: measured, and kept in %s", machine.name, path)
    except OSError as error:
        said(f"the measured machine cannot be kept in {path.parent}: {error.strerror}")
    return machine


def doubt(machine: Machine, now_s: float) -> str | None:
    """Why a kept machine should be measured again: it is old, or was busy then; None if there is no reason."""
    if machine.quality is None:
        return None
    age_s = machine.quality.age_s(now_s)
    if age_s < 0:
        return "it was measured in the future, by its clock"
    if age_s > BELIEVED_S:
        return f"what is kept of it is {age_in_words(age_s)} old"
    if machine.quality.busy and age_s > AGAIN_AFTER_S:
        return f"it was busy {age_in_words(age_s)} ago ({'; '.join(machine.quality.busy)})"
    return None


def _now_and_then(said: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[str], None]:
    """A listener that passes a part's name on to `said`, at most every `TOLD_EVERY_S`."""
    last_s = clock()

    def on_part(part: str) -> None:
        nonlocal last_s
        if clock() - last_s >= TOLD_EVERY_S:
            last_s = clock()
            said(f"measuring {part}")

    return on_part


def kept_machine(backend: Backend, disk_dir: str | Path) -> Machine | None:
    """This machine as kept; None if none is kept or the file cannot be read."""
    path = kept_path(backend, disk_dir)
    try:
        return Machine.read(path) if path.exists() else None
    except FlexrefError:
        return None  # `measured_machine` says what is wrong with it, and measures again


def kept_path(backend: Backend, disk_dir: str | Path) -> Path:
    """The file in which this machine is kept, whether it is there or not."""
    return kept_file(cache_name(backend, disk_dir))


def cache_name(backend: Backend, disk_dir: str | Path) -> str:
    """A file name that differs whenever a measurement would: a digest of port, machine, threads, versions and disk.

    The machine is its processor, the cores that this process may use, memory, and GPUs. The disk is the device that
    holds `disk_dir`.
    """
    folder = Path(disk_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    port = backend.describe()
    ours = [asdict(backend.caps), describe(port), product_threads(), versions(port)]
    depends = [FORMAT, PROFILE_VERSION, *ours, os.stat(folder).st_dev]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return f"{backend.name}-{digest[:16]}"


def product_threads() -> list[int]:
    """The numbers of threads, ascending, of the BLAS libraries that this process has loaded."""
    return sorted({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
