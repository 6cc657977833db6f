"""The plan request: what a user asks of the planner; it plans nothing."""

from dataclasses import dataclass

from flexref.errors import PolicyError
from flexref.machine.machine import Machine
from flexref.units import GIB, TIERS, is_integer

MOST_ROWS, MOST_TOKENS, MOST_IN_BLOCK = 10**12, 1 << 24, 1 << 20
"""Bounds a job's rows, a row's tokens, and rows of a group or groups of a block: more of them are slips of the hand."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user asks of the planner; every row has the same lengths, in tokens.

    `weights_schemes`, `cache_schemes`, `attention_on`: what may be chosen from. `weights_schemes` None: the scheme of a
    weight file; for a published size, none or 4 bits. `rows` None: as many as fill one block. A capacity that is given
    replaces the machine's.
    """

    prompt_tokens: int
    new_tokens: int
    rows: int | None = None
    weights_schemes: tuple[str, ...] | None = None
    cache_schemes: tuple[str, ...] = ("none", "int4")
    attention_on: tuple[str, ...] = ("device", "host")
    rows_per_group: int | None = None
    groups: int | None = None
    overlap: bool = True
    max_latency_s: float | None = None
    max_disk_writes_gib: float | None = None
    device_mem_gib: float | None = None
    host_mem_gib: float | None = None
    disk_gib: float | None = None

    def __post_init__(self) -> None:
        """Raises `PolicyError` for a number of rows, tokens or groups that makes no sense."""
        for name, most in (
            ("prompt_tokens", MOST_TOKENS),
            ("new_tokens", MOST_TOKENS),
            ("rows", MOST_ROWS),
            ("rows_per_group", MOST_IN_BLOCK),
            ("groups", MOST_IN_BLOCK),
        ):
            number = getattr(self, name)
            if number is not None and not (is_integer(number) and 1 <= number <= most):
                raise PolicyError(f"{name} must be an integer from 1 to {most}, found {number!r}")

    def machine(self, machine: Machine) -> Machine:
        """The machine with the capacities that were given."""
        given = dict(zip(TIERS, (self.device_mem_gib, self.host_mem_gib, self.disk_gib), strict=True))
        for tier, gib in given.items():
            if gib is not None:
                if not 0 <= gib < 1 << 30:
                    raise PolicyError(f"{tier} memory must be a number of GiB of at least 0, found {gib}")
                machine = machine.with_capacity(tier, int(gib * GIB))
        return machine

    @property
    def max_disk_write_bytes(self) -> float | None:
        """The bound on the bytes that a job (or, with `rows` None, a block) writes to disk."""
        return None if self.max_disk_writes_gib is None else self.max_disk_writes_gib * GIB
