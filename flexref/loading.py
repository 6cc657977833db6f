"""The front door: from names and budgets to an engine; here all parts are wired, and nothing is held.

`load` does it all; `advisor` and `open_engine` are its two halves, for whoever wants to hear of predictions.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.block.budgets import backend_budgets
from flexref.engine.engine import Engine
from flexref.engine.events import Notice, OnEvent, logged, no_listener
from flexref.engine.interrupts import Interrupts
from flexref.engine.session import Session, check_policy
from flexref.engine.wall import Wall, WallPart
from flexref.errors import PolicyError, in_gib
from flexref.planner.advisor import Advisor
from flexref.policy import Policy
from flexref.profile.machine_sources import Given, MeasuredOnce
from flexref.storage.names import resolve
from flexref.storage.weightfile import WeightFile
from flexref.text.tokenizer import Tokenizer
from flexref.tiers.mirror import open_either
from flexref.units import GIB

if TYPE_CHECKING:
    from flexref.machine.machine import Machine

LOG = logging.getLogger(__name__)

POLICY_FIELDS = tuple(entry.name for entry in fields(Policy))


def load(  # noqa: PLR0913 - a front door names all that can be asked for
    path: str | Path | WeightFile,
    *,
    policy: Policy | None = None,
    machine: "str | Machine | None" = None,
    backend: str | Backend = "numpy",
    device_mem_gib: float | None = None,
    host_mem_gib: float | None = None,
    disk_dir: str | Path | None = None,
    keep: Mapping[str, Any] | None = None,
    mirror: str | Path | None = None,
    on_event: OnEvent = no_listener,
    graphs: bool = True,
    **backend_options: Any,
) -> Engine:
    """An engine for the weight file `path` (`demo`: the built-in model), or for one that is open already.

    Without budgets, what is free is the budget. Without a `policy`, one is chosen per job that has the fields in `keep`
    as they are, for `machine`: a file, the name of a known one, or None for this machine, which is measured once if a
    job does not simply fit on the device. `mirror`: a copy of the weight file, read where the file itself fails,
    or in its place, with a notice, where it cannot be opened.
    Without `graphs` every operator is called by itself, also where the port can replay what comes again: the tokens are
    the same. `on_event` hears of what is loaded and measured, and of what fails on a disk (`engine.events`). Raises
    `StorageError`, `WeightFileError`, `UnknownBackend`, `BackendUnavailable` or `PolicyError`.
    """
    return open_engine(
        path,
        advisor(policy, machine, keep),
        backend=backend,
        device_mem_gib=device_mem_gib,
        host_mem_gib=host_mem_gib,
        disk_dir=disk_dir,
        mirror=mirror,
        on_event=on_event,
        graphs=graphs,
        **backend_options,
    )


def advisor(
    policy: Policy | None = None, machine: "str | Machine | None" = None, keep: Mapping[str, Any] | None = None
) -> Advisor:
    """Who settles the policies of an engine's jobs, and later says how far its predictions were off; see `load`.

    Raises `PolicyError` for what `keep` names or says and no policy has, and what `machine_named` raises.
    """
    for name in keep or {}:
        if name not in POLICY_FIELDS:
            raise PolicyError(f"keep names {name!r}, which no policy has; its fields are {', '.join(POLICY_FIELDS)}")
    Policy().changed(**(keep or {}))
    if machine is None:
        return Advisor(MeasuredOnce(), policy, keep, plainly=True)
    from flexref.machine.known import machine_named  # noqa: PLC0415 - a job that names none needs neither
    from flexref.machine.machine import Machine  # noqa: PLC0415

    return Advisor(Given(machine if isinstance(machine, Machine) else machine_named(machine)), policy, keep)


def open_engine(  # noqa: PLR0913 - as `load`
    path: str | Path | WeightFile,
    settling: Advisor,
    *,
    backend: str | Backend = "numpy",
    device_mem_gib: float | None = None,
    host_mem_gib: float | None = None,
    disk_dir: str | Path | None = None,
    mirror: str | Path | None = None,
    on_event: OnEvent = no_listener,
    wall: Wall | None = None,
    tokenizer: Tokenizer | None = None,
    graphs: bool = True,
    **backend_options: Any,
) -> Engine:
    """An engine whose jobs `settling` settles; see `load`. Without a `wall` the first one's whole time begins now.

    `tokenizer`: that of the file, where it is made already.
    """
    wall = wall or Wall()
    with wall.part(WallPart.LOAD):
        file, mirror = (
            (path, mirror) if isinstance(path, WeightFile) else open_either(resolve(path), mirror, _noticed(on_event))
        )
    asked = _bytes("device", device_mem_gib), _bytes("host", host_mem_gib)
    port: Backend | None = None
    session: Session | None = None
    try:
        with Interrupts():  # what is open is known by the time they act
            with wall.part(WallPart.IMPORTS):
                port = create(backend, **backend_options) if isinstance(backend, str) else backend
            if settling.policy is not None:
                check_policy(settling.policy, file, port)  # before anything is open
            budgets = backend_budgets(port, *asked)
            with wall.part(WallPart.LOAD):
                session = Session(
                    *(file, port, settling, budgets),
                    disk_dir=disk_dir,
                    mirror=mirror,
                    on_event=on_event,
                    wall=wall,
                    tokenizer=tokenizer,
                    graphs=graphs,
                )
        LOG.info("opened %s: %s, %s weights, %s", file.path, file.spec.name, file.stored, in_gib(file.nbytes))
        shown = ", ".join(f"{tier.value} {'any' if size is None else in_gib(size)}" for tier, size in budgets.items())
        LOG.info("port %s, memory: %s; what spills goes to %s", port.name, shown, session.disk_dir)
        return Engine(session)
    except BaseException:
        for opened in (session, port):
            if opened is not None:
                opened.close()
        raise


def _noticed(on_event: OnEvent) -> Callable[[str], None]:
    """Tells and logs a text as a notice."""
    return lambda text: logged(on_event)(Notice(text))


def _bytes(tier: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 < gib < 1 << 20:
        raise PolicyError(f"{tier} memory must be a positive number of GiB, found {gib}")
    return int(gib * GIB)
