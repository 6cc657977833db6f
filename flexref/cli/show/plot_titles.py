"""What stands above a plot so that it says by itself what it shows: job, bounds, version, day; it draws nothing."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.cli.show.lengths import request_lengths
from flexref.errors import how_many
from flexref.version import __version__

if TYPE_CHECKING:
    from flexref.planner.plan_request import PlanRequest
    from flexref.quality.compare import Comparison


def made() -> str:
    """Which version drew a plot, and on which day."""
    return f"flexref {__version__}, {date.today().isoformat()}"


def job_in_words(wanted: "PlanRequest") -> str:
    """The job that was planned, and the bounds that were given."""
    rows = "as many rows as fill a block" if wanted.steady else how_many(len(wanted.job_rows), "row")
    parts = [f"{rows}, {request_lengths(wanted)}"]
    schemes = wanted.weights_schemes
    parts += [f"weights {' or '.join(schemes)}"] if schemes is not None and schemes != ("none", "int4") else []
    parts += [f"cache {wanted.cache_schemes[0]}"] if len(wanted.cache_schemes) == 1 else []
    for tier, gib in (("device", wanted.device_mem_gib), ("host", wanted.host_mem_gib), ("disk", wanted.disk_gib)):
        parts += [] if gib is None else [f"{tier} at most {gib:g} GiB"]
    parts += [] if wanted.max_latency_s is None else [f"a block at most {wanted.max_latency_s:g} s"]
    parts += [] if wanted.max_disk_writes_gib is None else [f"at most {wanted.max_disk_writes_gib:g} GiB to disk"]
    return "; ".join(parts)


def plan_title(what: str, wanted: "PlanRequest") -> str:
    """Title of a plot of predictions: its first line says what it shows, the others for which job."""
    return f"{what}\n{job_in_words(wanted)}\npredicted by {made()}"


def comparison_title(first: str, second: str, found: "Comparison") -> str:
    """Title of a plot of two models' differences."""
    figures = f"KL(A||B) {found.kl_mean:.3g} nats, same top token {found.same_top:.1%}"
    return f"How far {_name(second)} (B) is from {_name(first)} (A)\n{figures}; {found.protocol}\n{made()}"


def _name(path: str) -> str:
    """A weight file by its own name."""
    return Path(path).name
