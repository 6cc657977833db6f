"""A port whose links between host and device are slower than they are: after every copy its lane goes on copying.

So a slow bus can be tried on a fast one. After a copy as many bytes of scratch memory follow on the same lane, in the
same direction, as make both take as long as the copy alone on a link of that rate. Nothing sleeps: a lane that is busy
uses the link, and slows what else uses it, as it would there. It knows no job.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexref.backend.compiling import compile_time
from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Array, Backend, Buffer, HostWork, Lane, LaneStep, Move, Span, Ticket
from flexref.errors import PolicyError
from flexref.machine.machine import Machine
from flexref.units import DTYPE_BYTES, GIGA, LINK_OF, Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from flexref.planner.advisor import Machines

TO_DEVICE, FROM_DEVICE = LINK_OF[Tier.HOST, Tier.DEVICE], LINK_OF[Tier.DEVICE, Tier.HOST]

SCRATCH_BYTES = 16 << 20
"""Copied at a time after a copy, in either direction: long enough that its start costs little. No budget counts it."""

HOST_VIEWS_KNOWN = 64
"""An array of host memory is copied by operators soon after it was made: more need not be told apart from others."""


def slowed_links(port: Backend, bytes_per_s: float, rates: Mapping[str, float]) -> "SlowedLinks":
    """`port` with links of `bytes_per_s` in either direction; `rates`: what they have.

    Raises `PolicyError` if a link has less.
    """
    for link, rate in rates.items():
        if bytes_per_s > rate:
            raise PolicyError(
                f"a link of {bytes_per_s / GIGA:.4g} GB/s cannot be tried here: {link} copies reach {rate / GIGA:.4g} "
                "GB/s, and copying more makes a link slower only; give a lower rate"
            )
    return SlowedLinks(port, {link: rate / bytes_per_s - 1 for link, rate in rates.items()})


@dataclass(frozen=True, slots=True)
class SlowedTicket:
    """The ticket of a submission with more steps than were asked for: `firsts` are the numbers of those that were."""

    ticket: Ticket
    firsts: Sequence[int]

    def wait(self) -> None:
        """See `Ticket.wait`."""
        self.ticket.wait()

    def done(self) -> bool:
        """See `Ticket.done`."""
        return self.ticket.done()

    def times(self) -> Sequence[tuple[float, float]]:
        """See `Ticket.times`: a copy has ended when what was copied after it has."""
        times = self.ticket.times()
        ends = [*self.firsts[1:], len(times)]
        return [(times[first][0], times[end - 1][1]) for first, end in zip(self.firsts, ends, strict=True)]


class SlowedLinks:
    """A `Backend` that passes everything on to `port`, and makes copies between host and device take longer.

    What operators upload and download themselves, kilobytes of token ids, is as fast as it was.
    """

    def __init__(self, port: Backend, more: Mapping[str, float]) -> None:
        """`more`: how many bytes more than its own a copy takes on each link, as a multiple of them."""
        self.port, self._more = port, dict(more)
        self.compiling, self.pinning = compile_time(port), pinning_time(port)  # asked for by name, not through a call
        self._tiers: dict[int, str] = {}
        self._host_views: OrderedDict[int, tuple[Array, Buffer, int]] = OrderedDict()
        self._scratch = {tier: port.allocate(tier, 2 * SCRATCH_BYTES) for tier in ("device", "host")}
        port.host_memory(self._scratch["host"])[:] = 1  # touched: else the first copies would take longer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)

    def allocate(self, tier: str, nbytes: int) -> Buffer:
        """See `Backend.allocate`."""
        buffer = self.port.allocate(tier, nbytes)
        self._tiers[id(buffer)] = tier
        return buffer

    def release(self, buffer: Buffer) -> None:
        """See `Backend.release`."""
        self._tiers.pop(id(buffer), None)
        for key in [key for key, (_, of, _) in self._host_views.items() if of is buffer]:
            del self._host_views[key]
        self.port.release(buffer)

    def view(self, buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Backend.view`."""
        array = self.port.view(buffer, offset, shape, dtype)
        if self._tier_of(buffer) == "host":
            self._host_views[id(array)] = array, buffer, math.prod(shape) * DTYPE_BYTES[dtype]
            if len(self._host_views) > HOST_VIEWS_KNOWN:
                self._host_views.popitem(last=False)
        return array

    def assign(self, target: Array, source: Array) -> None:
        """See `Backend.assign`; a copy over a link is followed by others, in order with the operators."""
        self.port.assign(target, source)
        here, there = (self._host_views.get(id(array)) for array in (source, target))
        if (here is None) == (there is None):
            return
        link, nbytes = (FROM_DEVICE, there[2]) if there is not None else (TO_DEVICE, here[2])  # type: ignore[index]
        for step in self._longer(link, nbytes):
            spans = step.target, step.source
            self.port.assign(*(self.port.view(span.buffer, span.offset, (span.nbytes,), "uint8") for span in spans))

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`."""
        longer: list[LaneStep] = []
        firsts = []
        for step in steps:
            firsts.append(len(longer))
            longer.append(step)
            if not isinstance(step, HostWork):
                link = f"{self._tier_of(step.source.buffer)}->{self._tier_of(step.target.buffer)}"
                longer += self._longer(link, step.nbytes)
        ticket = self.port.submit(lane, longer, [_own(each) for each in after])
        return ticket if len(longer) == len(steps) else SlowedTicket(ticket, firsts)

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`."""
        self.port.wait(_own(ticket))

    def close(self) -> None:
        """See `Backend.close`."""
        self.port.close()
        while self._scratch:
            self.port.release(self._scratch.popitem()[1])

    def _tier_of(self, buffer: Buffer) -> str:
        if id(buffer) not in self._tiers:
            raise RuntimeError("memory that was not allocated through this port: its copies would not be slowed")
        return self._tiers[id(buffer)]

    def _longer(self, link: str, nbytes: int) -> Iterator[Move]:
        """What follows a copy of so many bytes over `link`."""
        left = round(self._more.get(link, 0.0) * nbytes)
        source, target = link.split("->")
        offset = 0 if link == TO_DEVICE else SCRATCH_BYTES
        while left > 0:
            size = min(left, SCRATCH_BYTES)
            spans = [Span(self._scratch[tier], offset, size) for tier in (source, target)]
            yield Move("a slower link", spans[0], spans[1])
            left -= size


def _own(ticket: Ticket) -> Ticket:
    """The port's own ticket."""
    return ticket.ticket if isinstance(ticket, SlowedTicket) else ticket


class SlowedMachines:
    """Machines whose links have at most `bytes_per_s` (a `planner.advisor.Machines`): those of ports with fast ones."""

    def __init__(self, machines: "Machines", bytes_per_s: float) -> None:
        self._machines, self._bytes_per_s = machines, bytes_per_s

    def check(self, backend: Backend) -> None:
        """See `Machines.check`."""
        self._machines.check(_fast(backend))

    def measured(self, backend: Backend, disk_dir: Path, tell: "Callable[[str], None] | None") -> Machine:
        """The machine of the port as it is, with slower links."""
        return self._slowed(self._machines.measured(_fast(backend), disk_dir, tell))

    def kept(self, backend: Backend, disk_dir: Path) -> Machine | None:
        """See `Machines.kept`."""
        machine = self._machines.kept(_fast(backend), disk_dir)
        return None if machine is None else self._slowed(machine)

    def _slowed(self, machine: Machine) -> Machine:
        for link in (TO_DEVICE, FROM_DEVICE):
            machine = machine.with_slower_link(link, self._bytes_per_s)
        return machine


def _fast(port: Backend) -> Backend:
    return port.port if isinstance(port, SlowedLinks) else port
