"""The plan request: what a user asks of the planner; it plans nothing."""

from dataclasses import dataclass
from typing import Annotated

from flexref.errors import PolicyError
from flexref.json_types.values import Whole
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

    prompt_tokens: Annotated[int, Whole(1), "Tokens of every prompt."]
    new_tokens: Annotated[int, Whole(1), "New tokens of every row."]
    rows: Annotated[int | None, Whole(1), "Rows in all; null: as many as fill one block."] = None
    weights_schemes: Annotated[tuple[str, ...] | None, "How weights may be stored; null: as the model says."] = None
    cache_schemes: Annotated[tuple[str, ...], "How the cache may be stored."] = ("none", "int4")
    attention_on: Annotated[tuple[str, ...], "Where decode attention may be computed."] = ("device", "host")
    rows_per_group: Annotated[int | None, Whole(1), "Rows that are computed together, if that is fixed."] = None
    groups: Annotated[int | None, Whole(1), "Groups of a block, if that is fixed."] = None
    overlap: Annotated[bool, "Whether copies may go on while the device computes."] = True
    max_latency_s: Annotated[float | None, "The most seconds that a block may take."] = None
    max_disk_writes_gib: Annotated[float | None, "The most GiB that the job may write to disk."] = None
    device_mem_gib: Annotated[float | None, "GiB of the device, in place of the machine's."] = None
    host_mem_gib: Annotated[float | None, "GiB of the host, in place of the machine's."] = None
    disk_gib: Annotated[float | None, "GiB of the disk, in place of the machine's."] = None
    row_invariant: Annotated[bool, "Whether a row's results are to have bits of their own."] = True

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
