"""A stage's operands by their role: what each step of a program multiplies with and adds; it moves nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexref.architecture.program import Role
from flexref.architecture.stages import Stage
from flexref.backend.protocol import Matrix


@dataclass(frozen=True, slots=True)
class Weights:
    """What one step learned: a matrix, gain or table, and a bias or shift; None where the model learned none.

    Any form of operand may stand here. Which step it is of says which form it has.
    """

    weight: Any
    bias: Any


NOTHING_LEARNED = Weights(None, None)

StageWeights = Mapping[Role, Weights]
"""The operands of the steps of a stage; a step that learned nothing is missing."""


def by_role(stage: Stage, tensors: Mapping[str, Matrix]) -> StageWeights:
    """The operands of `stage` among `tensors`, which are named as in a weight file."""
    found = {}
    for unit in stage.units:
        weight, *bias = (tensors[tensor.name] for tensor in unit)
        found[unit[0].role] = Weights(weight, bias[0] if bias else None)
    return found
