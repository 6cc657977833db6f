"""The engine's front door: a file by its name, a port by its name, budgets in GiB; it holds nothing itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.block.memory_plan import backend_budgets
from flexref.engine.engine import Engine
from flexref.engine.interrupts import Interrupts
from flexref.errors import PolicyError
from flexref.policy import Policy
from flexref.profile.kept_machines import MeasuredOnce
from flexref.storage.weightfile import WeightFile, open_weight_file, resolve

GIB = 1 << 30


def load(
    path: str | Path | WeightFile,
    *,
    policy: Policy | None = None,
    backend: str | Backend = "numpy",
    device_mem_gib: float | None = None,
    host_mem_gib: float | None = None,
    disk_dir: str | Path | None = None,
    keep: Mapping[str, Any] | None = None,
    **backend_options: Any,
) -> Engine:
    """An engine for the weight file `path` (`demo`: the built-in model), or for one that is open already.

    Without budgets, what is free is the budget; without a policy, one is chosen per job that has the fields in `keep`
    as they are. Raises `StorageError`,
    `WeightFileError`, `UnknownBackend`, `BackendUnavailable` or `PolicyError`.
    """
    file = path if isinstance(path, WeightFile) else open_weight_file(resolve(path))
    asked = _bytes("device", device_mem_gib), _bytes("host", host_mem_gib)
    port: Backend | None = None
    engine: Engine | None = None
    try:
        with Interrupts():  # what is open is known by the time they act
            port = create(backend, **backend_options) if isinstance(backend, str) else backend
            budgets = backend_budgets(port, *asked)
            engine = Engine(file, port, policy, budgets, disk_dir, keep, MeasuredOnce())
        return engine
    except BaseException:
        for opened in (engine, port):
            if opened is not None:
                opened.close()
        raise


def _bytes(tier: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 < gib < 1 << 20:
        raise PolicyError(f"{tier} memory must be a positive number of GiB, found {gib}")
    return int(gib * GIB)
