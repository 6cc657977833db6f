"""One block of a job before it runs: its groups of rows, its memory, and the shape of its schedule; it runs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexref.block.memory_plan import BlockPlan, groups_of
from flexref.block.rows import Group, Row
from flexref.policy import Policy
from flexref.schedule.zigzag import Shape
from flexref.tiers.weights_plan import WeightsPlan


@dataclass(frozen=True, slots=True)
class PlannedBlock:
    """The rows of a block in their groups, and every byte that they will hold beside the weights."""

    groups: tuple[Group, ...]
    memory: BlockPlan
    weights: WeightsPlan

    @classmethod
    def of(cls, rows: Sequence[Row], policy: Policy, memory: BlockPlan, weights: WeightsPlan) -> "PlannedBlock":
        """The block of `rows`, `policy.rows_per_group` to a group."""
        return cls(tuple(Group(group) for group in groups_of(rows, policy)), memory, weights)

    @property
    def rows(self) -> list[Row]:
        """All rows, group by group."""
        return [row for group in self.groups for row in group.rows]

    def shape(self, passes: int) -> Shape:
        """What the schedule must know to run so many passes."""
        weights = self.weights
        return Shape(passes, len(weights.stages), len(self.groups), weights.slots, self.memory.moving(weights))
