"""Every byte that a block will hold, before it holds any: the plans of all stores, the logits and the workspace."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from flexref.architecture.program import Role, program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind
from flexref.backend.capabilities import Capabilities
from flexref.backend.records import RecordLayout
from flexref.block.counted_rows import rows_under
from flexref.block.rooms import BlockRooms
from flexref.block.rows import JobRows
from flexref.block.workspace import ExpandedPlan, Expansion, workspace_bytes
from flexref.policy import Policy
from flexref.tiers.activations import ActivationsPlan, GroupPlan
from flexref.tiers.cache_plan import CachePlan
from flexref.tiers.placement import place_items
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, LOGITS_DTYPE, Kind, Tier, aligned, slots_of

SCORED_AT_ONCE = 256
"""Of so many scored tokens there are logits at a time, by one tile of the head: enough for a product to be worth the
reading of its tile. It is the same for every placement, since a product's rounding may depend on its shape."""

LOGITS_SLOTS = 2
"""Logits of scored tokens under way at a time: those that the host sums up, and those that the port computes."""

Need = tuple[Tier, str, int]
"""(tier, holder, bytes)."""


class BlockRoom(str, Enum):
    """What a block takes memory for beside its stores, by the name that it is counted under."""

    LOGITS = "logits"
    LOGITS_ON_HOST = "logits on host"
    WORKSPACE = "workspace"
    EXPANDED = "expanded weights"
    ATTENTION_ON_HOST = "attention on host"

    __str__ = str.__str__


@dataclass(frozen=True)
class BlockPlan:
    """One block's memory.

    `tile_logits_bytes` are those of the logits of some scored tokens by one tile of the head, of which two are under
    way: 0 where tokens are generated, and then `logits_bytes` and `hidden_bytes` are what a group needs.
    """

    cache: CachePlan
    activations: ActivationsPlan
    rows_most: int
    logits_bytes: int
    hidden_bytes: int
    workspace_bytes: int
    expanded: ExpandedPlan
    far_bytes: int
    tile_logits_bytes: int = 0

    def moving(self, weights: WeightsPlan) -> frozenset[Kind]:
        """The kinds of data of which anything travels between the tiers (see `schedule.Shape`)."""
        moves = {
            Kind.WEIGHTS: weights.slot_bytes,
            Kind.CACHE: self.cache.slot_bytes,
            Kind.ACTIVATIONS: self.activations.token_rows_bytes
            or any(group.home is not Tier.DEVICE for group in self.activations.groups),
        }
        return frozenset(kind for kind, anything in moves.items() if anything)

    def needs(self) -> Iterator[Need]:
        """Everything that a block takes, in the order in which it is taken."""
        yield from self.cache.needs()
        yield from self.activations.needs()
        yield from self.own_needs()

    def own_needs(self) -> Iterator[tuple[Tier, BlockRoom, int]]:
        """What belongs to no store."""
        groups = len(self.cache.groups)
        if self.tile_logits_bytes:
            yield Tier.DEVICE, BlockRoom.LOGITS, LOGITS_SLOTS * self.tile_logits_bytes
            yield Tier.HOST, BlockRoom.LOGITS_ON_HOST, LOGITS_SLOTS * self.tile_logits_bytes
        else:
            yield Tier.DEVICE, BlockRoom.LOGITS, groups * (self.logits_bytes + self.hidden_bytes)
        yield Tier.DEVICE, BlockRoom.WORKSPACE, self.workspace_bytes
        if self.expanded.nbytes:
            yield Tier.DEVICE, BlockRoom.EXPANDED, self.expanded.nbytes
        if self.far_bytes:
            yield Tier.HOST, BlockRoom.ATTENTION_ON_HOST, self.far_bytes


def record_layout(spec: ModelSpec, policy: Policy, compute_dtype: str) -> RecordLayout:
    """How the policy lays out a token's record."""
    return RecordLayout(spec.heads, spec.head_width, compute_dtype, policy.cache_scheme, policy.cache_group_size)


def plan_block(
    weights: WeightsPlan, caps: Capabilities, policy: Policy, rows: JobRows, *, expansion: Expansion
) -> BlockPlan:
    """The memory of a block through which `rows` go; matrices expanded as far as asked.

    Of a block that runs a single pass nothing is kept: there is no second one to keep it for.
    """
    file = weights.file
    spec, width = file.spec, DTYPE_BYTES[caps.compute_dtype]
    attention = program_of(spec).attention
    rooms = BlockRooms.of(rows_under(rows, policy), policy)
    if expansion is Expansion.KEPT and rooms.single_pass:
        expansion = Expansion.PER_PASS
    layers = 1 if rooms.scores else spec.layers
    layout = record_layout(spec, policy, caps.compute_dtype)
    slots, kept = slots_of(policy.overlap), (rooms.prefix_tokens, spec.layers)
    cache = CachePlan(layout, layers, rooms.groups, slots, rooms.scores, *kept)
    # What the head makes of the scored tokens takes the place of the hidden states.
    tokens = [group.pass_tokens for group in rooms.groups]
    widest = [max(count * spec.width, rooms.scored(count) * spec.embed_width) for count in tokens]
    most_bytes = [aligned(values * width, ALIGNMENT_BYTES) for values in widest]
    waiting = place_items(most_bytes, policy.activations)
    table_bytes = DTYPE_BYTES[file.dtype]
    staged = 0 if table_on_device(weights) else aligned(max(tokens) * spec.embed_width * table_bytes, ALIGNMENT_BYTES)
    activations = ActivationsPlan(
        tuple(GroupPlan(size, home) for size, home in zip(most_bytes, waiting, strict=True)),
        staged,
        slots_of(policy.overlap),
    )
    rows_most = max(group.rows for group in rooms.groups)
    far_tokens = max(group.in_place.away_tokens for group in rooms.groups)
    scored_most = rooms.scored(max(tokens))
    logits_at_once = min(scored_most, SCORED_AT_ONCE) * min(file.tile_rows, spec.vocabulary)
    ends_most = scored_most or rows_most
    return BlockPlan(
        cache=cache,
        activations=activations,
        rows_most=rows_most,
        logits_bytes=aligned(rows_most * spec.vocabulary * DTYPE_BYTES[LOGITS_DTYPE], ALIGNMENT_BYTES),
        hidden_bytes=aligned(rows_most * spec.embed_width * width, ALIGNMENT_BYTES),
        workspace_bytes=workspace_bytes(spec, caps.compute_dtype, file.dtype, max(tokens), ends_most, not staged),
        expanded=ExpandedPlan.of(weights, caps, expansion, len(rooms.groups)),
        far_bytes=aligned(far_tokens * (attention.inputs + attention.width) * width, ALIGNMENT_BYTES),
        tile_logits_bytes=aligned(logits_at_once * DTYPE_BYTES[LOGITS_DTYPE], ALIGNMENT_BYTES),
    )


def table_on_device(weights: WeightsPlan) -> bool:
    """Whether the home of every tile of the token table is the device."""
    if weights.gathered:
        return all(tier is Tier.DEVICE for _, tier in weights.gathered)
    heads = [plan for plan in weights.stages if plan.stage.kind is StageKind.HEAD]
    here = [tensor.spec for plan in heads for run in plan.homes[Tier.DEVICE].runs for tensor in run.tensors]
    return sum(tensor.role is Role.TOKENS for tensor in here) == len(heads)
