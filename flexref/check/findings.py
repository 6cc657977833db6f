"""What a checked run found: per operator and stage the element that is furthest off; it knows no port and no law."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Norm, Role
from flexref.architecture.stages import Stage, StageKind, TensorSpec
from flexref.check.tolerances import Numbers
from flexref.errors import FlexrefError

OUTSIDE = "no stage"
"""The stage of calls outside any visit."""

MOVED = "moved"
"""Stands for an operator where something is compared that no operator made: what was brought to where it is read."""


class PortFailure(FlexrefError):
    """A port's operator that raised, or gave what cannot be computed with: the run cannot go on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The worst of one call: an element of a result, how far it is off, and what is permitted.

    `ratio` is error / bound, infinite where nothing is permitted. `turn` is the number of the pass. `fault` says what
    is wrong where it is no number: then `element` is empty.
    """

    operator: str
    role: str
    stage: str
    turn: int
    group: int
    shapes: Mapping[str, tuple[int, ...]]
    ratio: float
    error: float = 0.0
    bound: float = 0.0
    found: float = 0.0
    needed: float = 0.0
    part: str = ""
    element: tuple[int, ...] = ()
    fault: str | None = None

    @property
    def label(self) -> str:
        """The operator with its role: `linear attention_qkv`."""
        return f"{self.operator} {self.role}".strip()

    @property
    def within(self) -> bool:
        """Whether it is right."""
        return self.ratio <= 1

    @property
    def place(self) -> str:
        """Which element, of which part of the result."""
        element = f"({', '.join(map(str, self.element))})" if self.element else ""
        return f"{self.part} {element}".strip()

    @property
    def inputs(self) -> str:
        """The operands' shapes: `x 3x32, w 96x32`."""
        return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())

    def __str__(self) -> str:
        where = f"{self.label} of {self.stage} (pass {self.turn}, group {self.group}, operands {self.inputs})"
        if self.fault is not None:
            return f"{where} {self.fault}"
        times = f"{self.ratio:.3g} times its bound" if math.isfinite(self.ratio) else "more than any rounding"
        return (
            f"{where} is off by {times}: {self.place} is {self.found:.9g}, needed {self.needed:.9g} "
            f"within {self.bound:.3g}, off by {self.error:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name; null where one is infinite or no number."""
        values = {name: finite_or_none(value) for name, value in asdict(self).items()}
        return {**values, "within": self.within}


def finite_or_none(value: Any) -> Any:
    """`value`, or None for a float that JSON cannot say."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(slots=True)
class OperatorFindings:
    """All calls of one operator, in one role, of one stage. `unjudged`: elements that no finite bound says anything of.

    These are results of operands that were not finite, and those that the port's type cannot hold.
    """

    worst: Finding
    calls: int = 0
    elements: int = 0
    unjudged: int = 0

    def to_json(self) -> dict[str, Any]:
        """The worst finding with the counts."""
        counts = {"calls": self.calls, "elements": self.elements, "unjudged": self.unjudged}
        return {**self.worst.to_json(), **counts}


@dataclass(slots=True)
class Call:
    """One call of an operator that is being checked: notes in its `entry` what is worse than what was found before."""

    entry: OperatorFindings
    base: Finding
    """This call with nothing wrong."""

    def compare(
        self, found: npt.NDArray[Any], law: tuple[Numbers, Numbers], part: str = "", first: tuple[int, ...] = ()
    ) -> None:
        """Note the element of `found` that is furthest from the law's value, in multiples of the law's bound.

        `part` names what these are of the whole result, `first` is the place there of their first element.
        """
        value, wide = law[0], found.astype(np.float64)
        with np.errstate(all="ignore"):
            bound = np.broadcast_to(law[1], value.shape)
            largest = float(np.finfo(found.dtype).max) if found.dtype.kind == "f" else np.inf
            judged = np.isfinite(value) & np.isfinite(bound) & (np.abs(value) + bound <= largest)
            error = np.where(judged, np.abs(np.where(np.isfinite(wide), wide, np.inf) - value), 0)
            ratio = np.where(error > 0, error / bound, 0)
        self.entry.elements += value.size
        self.entry.unjudged += int(value.size - np.count_nonzero(judged))
        if not value.size:
            return
        at = np.unravel_index(int(np.where(ratio == ratio.max(), error, -1).argmax()), value.shape)
        ratio_at, error_at, bound_at, found_at, needed_at = (float(of[at]) for of in (ratio, error, bound, wide, value))
        element = tuple(int(place) + start for place, start in zip(at, first or (0,) * len(at), strict=True))
        worst = replace(self.base, ratio=ratio_at, error=error_at, bound=bound_at, found=found_at, needed=needed_at)
        self._note(replace(worst, part=part, element=element))

    def same(self, found: npt.NDArray[Any], needed: npt.NDArray[Any], what: str) -> None:
        """Note a fault unless both hold the same bytes."""
        if found.tobytes() != needed.tobytes():
            self.fault(what)

    def fault(self, text: str) -> None:
        """Note that something is wrong that is no number."""
        self._note(replace(self.base, ratio=math.inf, error=math.inf, fault=text))

    def skip(self, elements: int) -> None:
        """Count results that cannot be judged."""
        self.entry.elements += elements
        self.entry.unjudged += elements

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the port computes: what it raises is a fault and ends the run; errors that users cause pass."""
        try:
            yield
        except FlexrefError:
            raise
        except Exception as error:  # whatever a broken port raises
            raise self.stop(f"raised {type(error).__name__}: {' '.join(str(error).split())}") from error

    def stop(self, text: str) -> PortFailure:
        """Note a fault after which the run cannot go on; the error to raise."""
        self.fault(text)
        return PortFailure(str(replace(self.base, ratio=math.inf, fault=text)))

    def _note(self, finding: Finding) -> None:
        worst = self.entry.worst
        if worst.fault is None and (finding.ratio, finding.error) > (worst.ratio, worst.error):
            self.entry.worst = finding


def role_of(matrix: TensorSpec | None) -> str:
    """What a matrix does in its stage, in a word: `attention_qkv`; any tile that is multiplied is one of the head."""
    if matrix is None:
        return ""
    return (Role.HEAD if matrix.is_tile else matrix.role).value


class Findings:
    """Collects what a checked run finds. Give `on_visit` to the engine, which tells it which stage computes."""

    def __init__(self, layers: Collection[int] | None = None) -> None:
        """`layers`: which decoder layers to check, None for all; the embedding and the head are always checked."""
        self.layers = None if layers is None else frozenset(layers)
        self.entries: dict[tuple[str, str, str], OperatorFindings] = {}
        self.skipped_calls = 0
        self.visit = CheckedVisit(None, 0, 0)

    def on_visit(self, stage: Stage, group: int, turn: int) -> None:
        """A visit's operators are about to be called."""
        self.visit = CheckedVisit(stage, group, turn)

    def begin(self, operator: str, role: str, **shapes: tuple[int, ...]) -> Call | None:
        """A call of `operator` on operands of these shapes; None if this stage is not checked."""
        visit = self.visit
        if self.layers is not None and visit.layer is not None and visit.layer not in self.layers:
            self.skipped_calls += 1
            return None
        key = (visit.name, operator, role)
        base = Finding(operator, role, visit.name, visit.turn, visit.group, shapes, 0.0)
        entry = self.entries.setdefault(key, OperatorFindings(base))
        entry.calls += 1
        return Call(entry, base)

    @property
    def calls(self) -> int:
        """Calls of operators that were checked."""
        return sum(entry.calls for (_, operator, _), entry in self.entries.items() if operator != MOVED)

    @property
    def worst(self) -> Finding | None:
        """What is furthest off of all."""
        found = [entry.worst for entry in self.entries.values()]
        return max(found, key=lambda finding: (finding.ratio, finding.fault is not None, finding.error), default=None)

    def by_operator(self) -> dict[str, list[OperatorFindings]]:
        """The entries of every operator in its role, in the order of their first calls."""
        table: dict[str, list[OperatorFindings]] = {}
        for entry in self.entries.values():
            table.setdefault(entry.worst.label, []).append(entry)
        return table

    def to_json(self) -> list[dict[str, Any]]:
        """Every entry."""
        return [entry.to_json() for entry in self.entries.values()]


class CheckedVisit:
    """One visit while its operators are called: names the roles of operators by the tensors of its stage."""

    def __init__(self, stage: Stage | None, group: int, turn: int) -> None:
        self.stage, self.group, self.turn = stage, group, turn
        tensors = () if stage is None else stage.tensors
        # Positions are the one matrix of a stage that no product takes.
        matrices = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.role is not Role.POSITIONS]
        self._matrices = {"linear": list(matrices), "expand": list(matrices)}
        self._norms = (step.role for step in (() if stage is None else stage.steps) if isinstance(step, Norm))
        # Kept for `carried`: whether an operator has read the hidden states, of how many tokens, and how many rows
        # of the cache were appended to; the digests of the rows that the last pass left.
        self.entered, self.tokens, self.rows = False, 0, 0
        self.known: list[int] = []

    @property
    def name(self) -> str:
        """The stage's name."""
        return OUTSIDE if self.stage is None else self.stage.name

    @property
    def kind(self) -> str:
        """The stage's kind."""
        return OUTSIDE if self.stage is None else self.stage.kind.value

    @property
    def layer(self) -> int | None:
        """Which decoder layer it is, if it is one."""
        return self.stage.index if self.stage is not None and self.stage.kind is StageKind.LAYER else None

    def follower(self, layers: int) -> str | None:
        """The name of the stage that reads what this one gives."""
        if self.stage is None or self.stage.kind is StageKind.HEAD:
            return None
        following = 0 if self.layer is None else self.layer + 1
        return f"layer {following}" if following < layers else "head 0"

    def matrix(self, operator: str, shape: tuple[int, ...]) -> TensorSpec | None:
        """The stage's next matrix of this shape: operators take them in the order of the file."""
        left = self._matrices[operator]
        for place, tensor in enumerate(left):
            if tensor.shape == shape:
                del left[: place + 1]
                return tensor
        return None

    def norm(self) -> Role | None:
        """The role of the stage's next norm, learned or not."""
        return next(self._norms, None)
