"""Collects what a checked run finds: of every operator and stage, the worst element; it knows no port and no law."""

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
from flexref.errors import FlexrefError, described

OUTSIDE = "no stage"
"""The stage's name for calls outside any visit."""

MOVED = "moved"
"""Stands in place of an operator's name where a copy is checked: what was read with what had been stored."""


class PortFailure(FlexrefError):
    """An operator raised an error, or gave a result that nothing can be computed from: the run ends."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The worst element of one call's result: where it is, its error, and the bound of that error.

    `ratio` is error / bound: up to 1 the element is right; it is infinite where the bound is 0 and the error is not.
    `turn` is the number of the pass. `part` names a part of the result where it has several. `fault` says in words what
    is wrong where that is not an element's value, a wrong shape for example; `element` is then empty.
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
        """Whether the result is right."""
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
        if not math.isfinite(self.found):
            return (
                f"{where} gives no finite number, which is more than any rounding: {self.place} is {self.found}, "
                f"needed {self.needed:.9g} within {self.bound:.3g}"
            )
        return (
            f"{where} is off by {times_its_bound(self.ratio)}: {self.place} is {self.found:.9g}, needed "
            f"{self.needed:.9g} within {self.bound:.3g}, off by {self.error:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name; null where one is infinite or no number."""
        values = {name: finite_or_none(value) for name, value in asdict(self).items()}
        return {**values, "within": self.within}


def finite_or_none(value: Any) -> Any:
    """`value`, or None for an infinite float or NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def times_its_bound(ratio: float) -> str:
    """An error in words, as a multiple of its bound."""
    return f"{ratio:.3g} times its bound" if math.isfinite(ratio) else "more than any rounding"


@dataclass(slots=True)
class OperatorFindings:
    """All calls of one operator in one role and one stage.

    `elements`: how many were compared; `unjudged`: how many of these have no finite bound, because an operand was not
    finite or the port's type cannot hold the result.
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
    """One call that is being checked. What is worse than all that `entry` has so far takes its place there."""

    entry: OperatorFindings
    base: Finding
    """This call with nothing wrong."""

    def compare(
        self, found: npt.NDArray[Any], law: tuple[Numbers, Numbers], part: str = "", first: tuple[int, ...] = ()
    ) -> None:
        """Note the element of `found` whose error is the largest multiple of its bound.

        `law`: the right values and the bounds of their errors, shaped like `found`. Where `found` is only a piece of
        the result, `part` names the piece and `first` is the index of its first element in the result.
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
        """Note the fault `what` unless both arrays hold the same bytes."""
        if found.tobytes() != needed.tobytes():
            self.fault(what)

    def fault(self, text: str) -> None:
        """Note something wrong that is not an element's value."""
        self._note(replace(self.base, ratio=math.inf, error=math.inf, fault=text))

    def skip(self, elements: int) -> None:
        """Count elements of a result that cannot be checked."""
        self.entry.elements += elements
        self.entry.unjudged += elements

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put this around the port's own call. An error there is noted as a fault and raised as `PortFailure`.

        A `FlexrefError`, which a user may cause, is raised as it is.
        """
        try:
            yield
        except FlexrefError:
            raise
        except Exception as error:  # whatever a broken port raises
            raise self.stop(f"raised {described(error)}, needed a result") from error

    def stop(self, text: str) -> PortFailure:
        """Note a fault after which the run cannot go on; returns the error for the caller to raise."""
        self.fault(text)
        return PortFailure(str(replace(self.base, ratio=math.inf, fault=text)))

    def _note(self, finding: Finding) -> None:
        worst = self.entry.worst
        if worst.fault is None and (finding.ratio, finding.error) > (worst.ratio, worst.error):
            self.entry.worst = finding


def role_of(matrix: TensorSpec | None) -> str:
    """A matrix's role in its stage, `attention_qkv` for example; "" for None.

    The token table is cut into tiles and, where the head is tied, shared with it: a tile in a product is the head's.
    """
    if matrix is None:
        return ""
    return (Role.HEAD if matrix.is_tile else matrix.role).value


class Findings:
    """Collects what a checked run finds. Pass `on_visit` to the engine, so that findings name the stage."""

    def __init__(self, layers: Collection[int] | None = None) -> None:
        """`layers`: the decoder layers to check, None for all. The embedding and the head are always checked."""
        self.layers = None if layers is None else frozenset(layers)
        self.entries: dict[tuple[str, str, str], OperatorFindings] = {}
        self.skipped_calls = 0
        self.visit = CheckedVisit(None, 0, 0)

    def on_visit(self, stage: Stage, group: int, turn: int) -> None:
        """Note that from now on calls belong to `stage`, `group`, and pass `turn`."""
        self.visit = CheckedVisit(stage, group, turn)

    def begin(self, operator: str, role: str, **shapes: tuple[int, ...]) -> Call | None:
        """Begin a call of `operator` in `role` on operands of these shapes; None if this layer is not checked."""
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
        """How many calls of operators were checked; comparisons of what was moved are not counted."""
        return sum(entry.calls for (_, operator, _), entry in self.entries.items() if operator != MOVED)

    @property
    def worst(self) -> Finding | None:
        """The worst finding of all, right or wrong; None before the first call."""
        found = [entry.worst for entry in self.entries.values()]
        return max(found, key=lambda finding: (finding.ratio, finding.fault is not None, finding.error), default=None)

    def by_operator(self) -> dict[str, list[OperatorFindings]]:
        """Entries by operator and role, in the order of first calls."""
        table: dict[str, list[OperatorFindings]] = {}
        for entry in self.entries.values():
            table.setdefault(entry.worst.label, []).append(entry)
        return table

    def to_json(self) -> list[dict[str, Any]]:
        """One object for every operator, role and stage."""
        return [entry.to_json() for entry in self.entries.values()]


class CheckedVisit:
    """The visit whose operators are being called. From its stage it knows which tensor an operator reads."""

    def __init__(self, stage: Stage | None, group: int, turn: int) -> None:
        self.stage, self.group, self.turn = stage, group, turn
        tensors = () if stage is None else stage.tensors
        # Every matrix of a stage is an operand of `linear` or `expand`, except the table of positions.
        matrices = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.role is not Role.POSITIONS]
        self._matrices = {"linear": list(matrices), "expand": list(matrices)}
        self._norms = (step.role for step in (() if stage is None else stage.steps) if isinstance(step, Norm))
        # For `carried`: whether an operator of this visit has read the hidden states yet, and to how many rows' caches
        # something was appended.
        self.entered, self.rows = False, 0

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
        """The decoder layer's number; None for the embedding and the head."""
        return self.stage.index if self.stage is not None and self.stage.kind is StageKind.LAYER else None

    def follower(self, layers: int) -> str | None:
        """The name of the stage that reads this one's result, in a model of so many layers; None after the head."""
        if self.stage is None or self.stage.kind is StageKind.HEAD:
            return None
        following = 0 if self.layer is None else self.layer + 1
        return f"layer {following}" if following < layers else "head 0"

    def matrix(self, operator: str, shape: tuple[int, ...]) -> TensorSpec | None:
        """The stage's next matrix of this shape, None if there is none left: operators use them in the file's order."""
        left = self._matrices[operator]
        for place, tensor in enumerate(left):
            if tensor.shape == shape:
                del left[: place + 1]
                return tensor
        return None

    def norm(self) -> Role | None:
        """The role of the stage's next norm, with learned parameters or without; None if there is none left."""
        return next(self._norms, None)
