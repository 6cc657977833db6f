"""The plan request: what a user asks of the planner; it plans nothing."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from flexref.block.counted_rows import CountedRows, LengthsSummary
from flexref.block.rows import AlikeRows, JobRows, RowLengths
from flexref.errors import PolicyError
from flexref.json_types.objects import object_of
from flexref.json_types.values import Whole
from flexref.machine.machine import Machine
from flexref.units import GIB, TIERS, is_integer

MOST_ROWS, MOST_TOKENS, MOST_IN_BLOCK = 10**12, 1 << 24, 1 << 20
"""Bounds a job's rows, a row's tokens, and rows of a group or groups of a block: more of them are slips of the hand."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user asks of the planner: `rows` of the same lengths, in tokens, or those of `lengths`.

    `weights_schemes`, `cache_schemes`, `attention_on`: what may be chosen from. `weights_schemes` None: the scheme of a
    weight file; for a published size, none or 4 bits. `rows` None: as many as fill one block. A capacity that is given
    replaces the machine's.
    """

    prompt_tokens: Annotated[int | None, Whole(1), "Tokens of every prompt; null: see lengths."] = None
    new_tokens: Annotated[int | None, Whole(1), "New tokens of every row; null: see lengths."] = None
    rows: Annotated[int | None, Whole(1), "Rows in all; null: see lengths, or as many as fill one block."] = None
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
    share_prefixes: Annotated[bool, "Whether the beginnings that prompts share are read and kept once."] = True
    lengths: Annotated[CountedRows | None, object_of(LengthsSummary), "Rows that differ; null: all are alike."] = None

    def __post_init__(self) -> None:
        """Raises `PolicyError` for a number of rows, tokens or groups that makes no sense, and for none or too many."""
        alike = [name for name in ("prompt_tokens", "new_tokens", "rows") if getattr(self, name) is not None]
        if self.lengths is not None and alike:
            raise PolicyError(f"{alike[0]} and lengths exclude each other")
        if self.lengths is None and not {"prompt_tokens", "new_tokens"} <= set(alike):
            raise PolicyError("needed prompt_tokens and new_tokens, or lengths")
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

    @property
    def job_rows(self) -> JobRows:
        """The rows of the job, in order; one of them where there are as many as fill a block."""
        if self.lengths is not None:
            return self.lengths
        assert self.prompt_tokens is not None
        assert self.new_tokens is not None
        return AlikeRows(RowLengths(self.prompt_tokens, self.new_tokens), self.rows or 1)

    @property
    def steady(self) -> bool:
        """Whether there are as many rows as fill one block."""
        return self.rows is None and self.lengths is None

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, of the lengths a summary."""
        summary = None if self.lengths is None else self.lengths.summary.to_json()
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"lengths": summary}

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
