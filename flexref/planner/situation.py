"""What is planned for, as the planner's numbers, and policies of the shares that are found; it searches nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, sqrt
from operator import attrgetter

from flexref.backend.capabilities import Capabilities
from flexref.block.budgets import lasting_needs, loading_need, totals, with_read_ahead
from flexref.block.counted_rows import kinds_of, rows_under
from flexref.block.memory_plan import LOGITS_SLOTS, SCORED_AT_ONCE, BlockPlan, plan_block, record_layout
from flexref.block.rooms import DEVIATIONS
from flexref.block.rows import AlikeRows, JobRows, RowLengths
from flexref.block.workspace import Expansion, expanded_bytes, workspace_bytes
from flexref.machine.machine import Machine
from flexref.planner.plain_choice import GROUPS_MOST
from flexref.planner.program.lp import Solution
from flexref.planner.program.task import Limits, Room, Rooms, Scoring, Task, Turnover
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import WeightFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier, slots_of

ROWS_PER_GROUP_MOST = 512
"""The bound of the search, with GROUPS_MOST: what lies beyond is not looked at."""

WORKSPACE_TOKENS = (512, 4096)
"""Tokens of a group at which the workspace is measured, for the line through both."""

LEAST_ROWS = 0.5
"""A share of a block's rows that is less than this many comes to none."""

SHARE_DIGITS = 6
"""Digits of a share: finer ones than any tensor can follow."""


@dataclass(frozen=True)
class Situation:
    """What is planned for: a file's layout, a machine whose capacities are the budgets, rows in order.

    `base` is the policy of which all but shares, rows and groups is settled. `steady`: the rows are alike and there are
    as many as a block wants; only the first is looked at. `host_attention_share`: that of a policy with attention on
    the host, None if it is to be chosen; where that comes to no row, attention is on the device, unless it is
    `asked_on_host`.
    """

    file: WeightFile
    machine: Machine
    rows: JobRows
    base: Policy
    steady: bool = False
    host_attention_share: float | None = None
    asked_on_host: bool = False

    def without_disk(self) -> "Situation":
        """The same with nothing on disk."""
        return replace(self, machine=self.machine.with_capacity("disk", 0))

    @cached_property
    def caps(self) -> Capabilities:
        """Those of the machine's port."""
        port = self.machine.port
        return Capabilities(
            compute_dtype=port.compute_dtype,
            computes=True,
            overlaps_copies=port.overlaps_copies,
            attends_on_host=port.attends_on_host,
            scratch_bytes=port.scratch_bytes,
            fused_rows=port.fused_rows,
            one_memory=port.one_memory,
        )

    @cached_property
    def kinds(self) -> Counter[RowLengths]:
        """How many rows there are of each lengths, which share what they begin with if the policies let them."""
        return kinds_of(rows_under(self.rows, self.base))

    @cached_property
    def prefix_tokens(self) -> float:
        """Tokens of the prefixes that rows share, for each row of the job: they are read once, in one block."""
        return sum({row.prefix: row.shared_tokens for row in self.kinds}.values()) / len(self.rows)

    def mean(self, tokens: Iterable[float]) -> float:
        """Tokens of a row on average, of those of every kind together."""
        return sum(tokens) / len(self.rows)

    @cached_property
    def task(self) -> Task:
        """The job as the planner's numbers."""
        file, caps, spec = self.file, self.caps, self.file.spec
        streamed = WeightsPlan.of(file, Shares(0, 1, 0), slots_of(self.base.overlap))
        least, most = WORKSPACE_TOKENS
        scored = self.scored_share
        held = [
            workspace_bytes(spec, caps.compute_dtype, file.dtype, tokens, max(1, round(scored * tokens)), True)
            for tokens in WORKSPACE_TOKENS
        ]
        per_token = (held[1] - held[0]) / (most - least)
        longest = max(row.new_tokens for row in self.kinds)
        return Task(
            spec=spec,
            stored=file.stored,
            dense=file.dtype,
            stage_bytes=tuple(plan.streamed_bytes for plan in streamed.stages),
            stage_kinds=tuple(plan.stage.kind for plan in streamed.stages),
            gathered_bytes=sum(tensor.nbytes for tensor, _ in streamed.gathered),
            cache_scheme=self.base.cache_scheme,
            record_bytes=record_layout(spec, self.base, caps.compute_dtype).record_bytes,
            prompt_tokens=self.mean(row.own_tokens * count for row, count in self.kinds.items()) + self.prefix_tokens,
            prompt_tokens_most=max(row.own_tokens for row in self.kinds) + ceil(self.prefix_tokens),
            new_tokens=longest,
            attention_on=self.base.attention_on,
            overlap=self.base.overlap,
            workspace_bytes_fixed=max(0, round(held[0] - per_token * least)),
            workspace_bytes_per_token=per_token,
            expanded_bytes=expanded_bytes(file, caps),
            scoring=self.scoring,
            turnover=self.turnover,
            rooms=self.rooms,
            host_attention_share=self.host_attention_share,
        )

    @property
    def scored_share(self) -> float:
        """The most of a row's tokens that are scored."""
        return max(row.scored_tokens / row.own_tokens for row in self.kinds)

    @property
    def scoring(self) -> Scoring | None:
        """What is scored, if that is the job."""
        most = max(row.scored_tokens for row in self.kinds)
        if not most:
            return None
        mean = self.mean(row.scored_tokens * count for row, count in self.kinds.items())
        return Scoring(mean, most, SCORED_AT_ONCE, self.file.tile_rows, LOGITS_SLOTS)

    @property
    def turnover(self) -> Turnover | None:
        """How rows come and go, if they do; rows with as many new tokens begin and end together."""
        if self.scoring is not None or len({row.new_tokens for row in self.kinds}) == 1:
            return None
        return Turnover.of([(row.own_tokens, row.new_tokens, count) for row, count in self.kinds.items()])

    @property
    def rooms(self) -> Rooms | None:
        """The room that a block's groups get where rows differ, as `block.rooms` cuts it; None where they do not."""
        if len(self.kinds) == 1:
            return None
        prompts, records = (self._room(attrgetter(name)) for name in ("own_tokens", "capacity_tokens"))
        return Rooms(len(self.rows), prompts, records)

    def _room(self, tokens: Callable[[RowLengths], int]) -> Room:
        mean = self.mean(tokens(row) * count for row, count in self.kinds.items())
        variance = self.mean((tokens(row) - mean) ** 2 * count for row, count in self.kinds.items())
        return Room(mean, DEVIATIONS * sqrt(variance), max(map(tokens, self.kinds)))

    def limits(
        self, keep: Mapping[str, int | None], max_block_s: float | None, max_disk_write_bytes: float | None
    ) -> Limits:
        """The bound of the search; `keep` fixes rows per group or groups."""
        rows = None if self.steady else len(self.rows)
        return Limits(
            rows_per_group_most=min(ROWS_PER_GROUP_MOST, rows or ROWS_PER_GROUP_MOST),
            groups_most=min(GROUPS_MOST, rows or GROUPS_MOST),
            rows=rows,
            rows_per_group=keep.get("rows_per_group"),
            groups=keep.get("groups_per_block"),
            max_block_s=max_block_s,
            max_disk_write_bytes=max_disk_write_bytes,
        )

    def policy(self, solution: Solution) -> Policy:
        """The solution's policy, its shares rounded."""
        return self._attending(solution).changed(
            weights=rounded(solution.weights),
            cache=rounded(solution.cache),
            activations=rounded(solution.activations),
            rows_per_group=solution.rows_per_group,
            groups_per_block=solution.groups,
        )

    def _attending(self, solution: Solution) -> Policy:
        """`base` with attention on the host for the solution's share, or the one that is kept."""
        base, share = self.base, self.host_attention_share
        if base.attention_on == "device":
            return base
        if share is not None:
            return base.changed(host_attention_share=share)
        share = round(solution.host_attention_share, SHARE_DIGITS)
        off_device = solution.rows_per_group * solution.groups * (1 - solution.cache.device)
        if share * off_device >= LEAST_ROWS:
            return base.changed(host_attention_share=share)
        return base.changed(host_attention_share=0.0) if self.asked_on_host else base.changed(attention_on="device")

    def job_rows(self, policy: Policy) -> JobRows:
        """The rows of the job; where the job has no number of rows, those of one block."""
        return AlikeRows(next(iter(self.kinds)), policy.rows_per_block) if self.steady else self.rows

    def held_bytes(self, policy: Policy) -> dict[Tier, int]:
        """The most that each tier must hold, to the byte: with no more, weights load before there is a block."""
        weights = WeightsPlan.under(self.file, policy)
        whole = lasting_needs(weights, self.caps)
        always, most = totals(whole), totals([*whole, loading_need(weights)])
        block = totals(self._block(policy, weights).needs())
        return {tier: max(nbytes, always[tier] + block[tier]) for tier, nbytes in most.items()}

    def reading_ahead(self, policy: Policy) -> Policy:
        """A policy that fits, with how far it reads ahead from disk: what it leaves of the host is the most."""
        weights, held = WeightsPlan.under(self.file, policy), self.machine.capacity_bytes
        budgets = {tier: held[tier.value] for tier in Tier}
        return with_read_ahead(policy, weights, self._block(policy, weights), self.caps, budgets)

    def _block(self, policy: Policy, weights: WeightsPlan) -> BlockPlan:
        return plan_block(weights, self.caps, policy, self.job_rows(policy), expansion=Expansion.NEVER)


def rounded(shares: Shares) -> Shares:
    """Shares with few digits that still sum to one."""
    device, host = round(shares.device, SHARE_DIGITS), round(shares.host, SHARE_DIGITS)
    return Shares.of(device, min(host, 1 - device))
