"""Who knows the machine of an engine's jobs: what was measured here and kept, or a user; it keeps nothing itself.

What reads, describes and measures machines is loaded when one is asked for: many a job asks for none.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.backend.protocol import Backend
from flexref.errors import PolicyError
from flexref.machine.names import kept_names

if TYPE_CHECKING:
    from flexref.machine.machine import Machine


class MeasuredOnce:
    """This machine, measured when it is first asked for, and kept: see `measured_machine` (an `engine.Machines`)."""

    def check(self, backend: Backend) -> None:
        """Does nothing: this machine is always measured with the port that is used."""

    def measured(self, backend: Backend, disk_dir: Path, tell: Callable[[str], None] | None) -> "Machine":
        """The machine as kept, or measured now."""
        from flexref.profile.kept_machines import measured_machine  # noqa: PLC0415

        return measured_machine(backend, disk_dir, tell=tell)

    def kept(self, backend: Backend, disk_dir: Path) -> "Machine | None":
        """The machine as kept; None if none is kept or the file cannot be read."""
        if not any(name.startswith(f"{backend.name}-") for name in kept_names()):
            return None
        from flexref.profile.kept_machines import kept_machine  # noqa: PLC0415

        return kept_machine(backend, disk_dir)


@dataclass(frozen=True, slots=True)
class Given:
    """A machine that the user names, measured or known (an `engine.Machines`)."""

    machine: "Machine"

    def check(self, backend: Backend) -> None:
        """Raises `PolicyError` if it was measured with another port."""
        if self.machine.port.name != backend.name:
            raise PolicyError(
                f"machine {self.machine.name!r} was measured with port {self.machine.port.name}, not {backend.name}"
            )

    def measured(self, backend: Backend, disk_dir: Path, tell: Callable[[str], None] | None) -> "Machine":
        """The machine, with what the port that is used can do. Raises what `check` raises."""
        self.check(backend)
        port, caps = self.machine.port, backend.caps
        attends = port.attends_on_host and caps.attends_on_host  # nominal figures are those of a port that can
        used = replace(port, one_memory=caps.one_memory, attends_on_host=attends)  # older files do not say the first
        return self.machine.changed(port=used)

    def kept(self, backend: Backend, disk_dir: Path) -> "Machine | None":
        """The machine. Raises what `check` raises."""
        return self.measured(backend, disk_dir, None)
