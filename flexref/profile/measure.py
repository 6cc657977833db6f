"""Measures a machine through a port: every curve and capacity that a plan needs; it knows no plan."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from flexref.backend.protocol import Backend
from flexref.errors import PolicyError
from flexref.machine.machine import Machine, Port
from flexref.machine.quality import Quality
from flexref.profile.attention import attention_curves
from flexref.profile.environment import capacities, versions
from flexref.profile.environment import machine as describe
from flexref.profile.host import host_seconds
from flexref.profile.links import copy_curves, files
from flexref.profile.meter import Meter
from flexref.profile.occupation import Occupation
from flexref.profile.pointwise import operator_curves
from flexref.profile.products import expansion_curves, product_surfaces
from flexref.profile.record import Record
from flexref.profile.sizes import Sizes
from flexref.profile.slowdowns import slowdowns
from flexref.tiers.spill_file import made_folder

SPILL_NOTE = (
    "what a spill file takes and gives back may stay in the page cache, as it may in a job; the disk itself is slower"
)

UNMEASURED_DISK = "disk"
"""The source of a disk's figures where it could not be measured; a machine with it is not worth keeping."""

PARTS: Mapping[str, float] = MappingProxyType(
    {
        "copies": 18,
        "copies side by side": 7,
        "products": 30,
        "expansions": 8,
        "attention": 20,
        "other operators": 9,
        "the engine's own work": 8,
    }
)
"""The parts of a profile in their order, with their shares of its time; what one does not use is left for the next."""


def measure_machine(
    backend: Backend,
    disk_dir: str | Path,
    *,
    quick: bool = False,
    tell: Callable[[str], None] | None = None,
    sizes: Sizes | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_part: Callable[[str], None] | None = None,
) -> Machine:
    """Measure this machine with the port `backend`, and with `disk_dir` as its disk.

    It takes about a minute, or with `quick` at most five seconds, not counting the first point of every curve, which is
    always measured, nor what it takes to fill caches for attention on the host. It takes at most a quarter of the free
    memory, and gives all of it back, also after an error. Where time ran out a safe bound takes a figure's place, and
    `Machine.warnings` says so. `tell` is told what is measured now, `on_part` which part of the profile. `sizes`
    replace those of a full or quick profile. `clock` gives the host's seconds. Raises `PolicyError` for a port that
    computes nothing, `StorageError` if there can be no folder `disk_dir`; where the disk is full, its figures are
    assumed.
    """
    if not backend.caps.computes:
        raise PolicyError(f"backend {backend.name} computes nothing: there is nothing to measure")
    directory = made_folder(disk_dir)
    chosen = sizes or (Sizes.quick() if quick else Sizes.full())
    capacity_bytes = capacities(backend, directory)
    backend.keep_rows_apart(True)  # as jobs have it unless they are told otherwise, whatever the last one was told
    occupation, begin, began_at_s = Occupation(), clock(), time.time()
    with Meter(backend, chosen, tell, clock) as meter:
        turn = _turn(meter, on_part)
        next(turn)
        with files(meter, directory) as found:
            copies = copy_curves(meter, found)
            next(turn)
            beside = slowdowns(meter, found)
            direct = None if found is None else found.weights.direct
        next(turn)
        products = product_surfaces(meter)
        next(turn)
        expansions = expansion_curves(meter)
        next(turn)
        attention = attention_curves(meter)
        next(turn)
        operators = operator_curves(meter)
        next(turn)
        host_s = host_seconds(meter, directory)
        return Machine(
            name=_name(backend),
            port=port_of(backend, meter.asynchronous),
            capacity_bytes=capacity_bytes,
            copies=copies,
            beside=beside,
            products=products,
            expansions=expansions,
            decode_attention=attention.decode,
            prefill_attention=attention.prefill,
            operators={**operators, **attention.appends},
            host_s=host_s,
            sources=_sources(backend, quick, direct),
            warnings=meter.record.warnings,
            quality=quality_of(meter.record, occupation, began_at_s, clock() - begin),
        )


def quality_of(record: Record, occupation: Occupation, measured_at_s: float, took_s: float) -> Quality:
    """How far the figures in `record` can be believed, with what else was at work meanwhile."""
    taken = occupation.taken()
    return Quality(
        measured_at_s=measured_at_s,
        took_s=round(took_s, 3),
        load_before=round(occupation.load_before, 3),
        others_share=round(taken.others, 3),
        stolen_share=round(taken.stolen, 3),
        points=record.points,
        unstable=record.unstable,
        cut=record.cut_curves,
        spreads=record.spreads,
    )


def _turn(meter: Meter, on_part: Callable[[str], None] | None) -> Iterator[str]:
    """The parts in turn, each with its share of the time; `on_part` hears of each as it begins."""
    for number, part in enumerate(meter.pace.parts(list(PARTS), list(PARTS.values())), start=1):
        if on_part is not None:
            on_part(f"{part} ({number} of {len(PARTS)})")
        yield part


def port_of(backend: Backend, asynchronous: bool) -> Port:
    """What a plan must know of the port."""
    caps = backend.caps
    return Port(
        name=backend.name,
        compute_dtype=caps.compute_dtype,
        asynchronous=asynchronous,
        overlaps_copies=caps.overlaps_copies,
        attends_on_host=caps.attends_on_host,
        scratch_bytes=caps.scratch_bytes,
        fused_rows=caps.fused_rows,
        one_memory=caps.one_memory,
        recorded_bytes=caps.recorded_bytes,
        recording_bytes=caps.recording_bytes,
        recorded_call_bytes=caps.recorded_call_bytes,
    )


def _name(backend: Backend) -> str:
    here = describe(backend.describe())
    devices = [device.partition(",")[0] for device in here["gpu"]]
    return f"{backend.name} on {' and '.join([here['cpu'], *devices])}"


def _sources(backend: Backend, quick: bool, direct: bool | None) -> dict[str, str]:
    """Where figures come from; `direct`: whether the weight file was read past the page cache, None: there was none."""
    port = backend.describe()
    here = describe(port)
    about = ", ".join(f"{name} {version}" for name, version in versions(port).items())
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    cache = "past the page cache" if direct else "through the page cache: the file system refuses direct reads"
    links = f"{SPILL_NOTE}; the weight file is read {cache}" if direct is not None else "the links to the device alone"
    return {
        **({UNMEASURED_DISK: "assumed: nothing could be written there"} if direct is None else {}),
        "measured": f"{when}, {'quickly, ' if quick else ''}with backend {backend.name}; {about}",
        "machine": f"{here['cpu']}, {here['cpu_cores']} cores, {', '.join(here['gpu']) or 'no GPU'}",
        "copies": links,
    }
