"""One candidate's linear program, scaled and given to HiGHS; it knows shares, rows and bounds, and no machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flexref.errors import PolicyError
from flexref.machine.arrays import Numbers
from flexref.planner.program.blocks import ANYWHERE, ON_HOST
from flexref.planner.program.linear import IN_PLACE, SHARES, VARIABLES, Linear, Share
from flexref.planner.program.table import LATENCY, PHASES, Duals, Table
from flexref.units import KINDS

OPTIMAL, INFEASIBLE = 0, 2
"""What `linprog` says in `status`."""

OBJECTIVE = 1e3
"""What a unit of time costs: so much that the cost of a tie is above the solver's tolerance of 1e-7."""

TIE = {"device": 0.0, "host": 1e-4, "disk": 2e-4, "in place": 5e-5}
"""Cost of a share by its tier, and of what is read in place, so that of equal placements the nearest is chosen: all
together less than 1e-6 of a program's optimum."""

NEGLIGIBLE_SHARE = 1e-9
"""Shares below it come from the solver's arithmetic."""

NEGLIGIBLE_EXCESS = 1e-7
"""Bounds are kept up to this share of what they bound: the solver's own tolerance."""


@dataclass(frozen=True)
class Optimum:
    """A candidate's shares, the seconds of both phases at these, of the whole job, and the program's duals."""

    shares: Mapping[Share, float]
    prefill_s: float
    decode_s: float
    job_s: float
    duals: Duals

    @property
    def block_s(self) -> float:
        """Both phases of a full block."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True)
class Shortage:
    """The shares that exceed the bounds least; bytes, or seconds for latency, above 0 by bound; multipliers of it."""

    shares: Mapping[Share, float]
    excess: Mapping[str, float]
    duals: Duals


class Program:
    """The linear program of one candidate of a table.

    Its variables are the shares, the seconds of prefill and decode in a full block, and in the job's last one.
    """

    def __init__(self, table: Table, place: int) -> None:
        self.table = table.taken(np.array([place]))
        self._allowed = int(self.table.waiting[0])
        # Nine variables where nothing may be read in place.
        self._variables = VARIABLES if self.table.in_place[1] else SHARES

    @cached_property
    def _times(self) -> tuple[Numbers, Numbers]:
        """(constants (R,), coefficients (R, V)) of the rows in units of time."""
        return self._stacked([row.full_s for row in self.table.rows])

    @cached_property
    def _rest_times(self) -> tuple[Numbers, Numbers] | None:
        """The same of the last block; None if it is a full one."""
        terms = [row.rest_s for row in self.table.rows if row.rest_s is not None]
        return self._stacked(terms) if terms else None

    def _vector(self, term: Linear) -> tuple[float, Numbers]:
        """(constant, coefficients (V,)) of one term."""
        constant, row = term.vector()
        return constant, row[: len(self._variables)]

    def _stacked(self, terms: Sequence[Linear]) -> tuple[Numbers, Numbers]:
        """(constants (R,), coefficients (R, V)) of terms."""
        vectors = [self._vector(term) for term in terms]
        return np.array([vector[0] for vector in vectors]), np.array([vector[1] for vector in vectors])

    @cached_property
    def _blocks(self) -> tuple[float, float]:
        """(full blocks, all blocks with the last as the part that it is)."""
        return self.table.full_blocks.item(), self.table.blocks.item()

    @cached_property
    def _unit_s(self) -> float:
        """What takes no time anywhere cannot be planned; the constants are no more than the optimum."""
        constants = self._times[0]
        phases = np.array([row.phase for row in self.table.rows])
        return max(float(sum(constants[phases == phase].max() for phase in range(len(PHASES)))), 1e-12)

    @cached_property
    def _bounds(self) -> list[tuple[str, float, Numbers, float]]:
        """(name, constant, coefficients, scale) of what must not exceed 0, latency left out."""
        found = []
        for name, over in self.table.over.items():
            constant, row = self._vector(over)
            found.append((name, constant, row, max(1.0, float(row.max()))))
        return found

    def optimum(self, *, without: Sequence[str] = ()) -> Optimum | None:
        """The shares that take least; None if no shares keep all bounds. Those named in `without` do not count."""
        matrix, right, names = self._rows(without)
        full, blocks = self._blocks
        ties, seconds = [TIE[tier] for _, tier in self._variables], [OBJECTIVE * full / blocks] * len(PHASES)
        cost = np.concatenate([ties, seconds])
        if self._rest_times is not None:
            matrix, right = self._with_rest(matrix, right, *self._rest_times)
            cost = np.concatenate([cost, [OBJECTIVE / blocks] * len(PHASES)])
        result = self._solved(cost, matrix, right)
        if result.status == INFEASIBLE:
            return None
        marginals = -result.ineqlin.marginals[: len(right)]
        return self._at(self._cleaned(result.x), self._duals(marginals / OBJECTIVE, names))

    def _with_rest(
        self, matrix: Numbers, right: Numbers, constants: Numbers, coefficients: Numbers
    ) -> tuple[Numbers, Numbers]:
        """The rows, followed by those of the last block, whose seconds are two more variables."""
        wider = np.hstack([matrix, np.zeros((len(matrix), len(PHASES)))])
        nothing = np.zeros((len(constants), len(PHASES)))
        more = np.hstack([coefficients / self._unit_s, nothing, self._phases])
        return np.vstack([wider, more]), np.concatenate([right, -constants / self._unit_s])

    @cached_property
    def _phases(self) -> Numbers:
        """(R, 2) -1 where a row is of that phase: it bounds that phase's seconds."""
        return np.array(
            [[-1.0 if row.phase == phase else 0.0 for phase in range(len(PHASES))] for row in self.table.rows]
        )

    def least(self, what: Linear, *, without: Sequence[str] = ()) -> float | None:
        """The least value of something linear in the shares that can be had within the bounds."""
        matrix, right, _ = self._rows(without)
        constant, row = self._vector(what.taken(np.array([0])))
        scale = max(1.0, float(row.max()))
        result = self._solved(np.concatenate([row / scale, np.zeros(len(PHASES))]), matrix, right)
        return None if result.status == INFEASIBLE else constant + float(result.fun) * scale

    def shortage(self, weights: Mapping[str, float], *, without: Sequence[str] = ()) -> Shortage:
        """The shares that exceed the bounds least, in bytes weighted by name; latency counts in units of time."""
        matrix, right, names = self._rows(without)
        count = len(self.table.rows)
        elastic = np.zeros((len(right), len(names)))
        common = max((self.scale(name) for name in names if name != LATENCY), default=1.0)
        units = np.array([self._unit_s if name == LATENCY else common for name in names])
        elastic[count:] = -np.diag(units / [self.scale(name) for name in names])
        cost = np.concatenate([np.zeros(matrix.shape[1]), [weights.get(name, 1.0) for name in names]])
        result = self._solved(cost, np.hstack([matrix, elastic]), right)
        if result.status == INFEASIBLE:
            raise PolicyError(f"the shares of a placement have no solution: {result.message}")
        shares = self._cleaned(result.x)
        over = result.x[matrix.shape[1] :] * units
        excess = {name: float(value) for name, value in zip(names, over, strict=True)}
        return Shortage(shares, excess, self._excess_duals(-result.ineqlin.marginals[: len(right)], names))

    def scale(self, name: str) -> float:
        """What the row of a bound is divided by."""
        if name == LATENCY:
            return self._unit_s
        return next(scale for known, _, _, scale in self._bounds if known == name)

    def _rows(self, without: Sequence[str]) -> tuple[Numbers, Numbers, list[str]]:
        """(matrix (M, V + 2), right side (M,), names of the bounds): the rows of both phases, then the bounds."""
        constants, coefficients = self._times
        unit = self._unit_s
        matrix, right = [np.hstack([coefficients / unit, self._phases])], [-constants / unit]
        names = []
        for name, constant, bound, scale in self._bounds:
            if name not in without:
                names.append(name)
                matrix.append(np.concatenate([bound / scale, np.zeros(len(PHASES))])[None])
                right.append(np.array([-constant / scale]))
        if self.table.latency_s is not None and LATENCY not in without:
            names.append(LATENCY)
            matrix.append(np.concatenate([np.zeros(len(self._variables)), np.ones(len(PHASES))])[None])
            right.append(np.array([self.table.latency_s / unit]))
        return np.vstack(matrix), np.concatenate(right), names

    def _solved(self, cost: Numbers, matrix: Numbers, right: Numbers) -> Any:
        """What HiGHS says; shares lie in [0, 1], those of a kind sum to one, everything else is at least 0.

        The last rows are those of what is read in place, if anything may be: a part of what is off the device.

        `PolicyError` if it says neither that it has found the optimum nor that there is none.
        """
        from scipy.optimize import linprog  # noqa: PLC0415  half a second, for who solves a program alone

        sums = np.zeros((len(KINDS), len(cost)))
        for place, (kind, _) in enumerate(SHARES):
            sums[KINDS.index(kind), place] = 1
        most = np.full(len(cost), np.inf)
        most[: len(self._variables)] = 1.0
        if IN_PLACE in self._variables:
            rows = np.zeros((2, len(cost)))
            for row, (share, sign) in zip(rows, zip(self.table.in_place, (1.0, -1.0), strict=True), strict=True):
                row[VARIABLES.index(IN_PLACE)] = -sign
                for tier in ("host", "disk"):
                    row[SHARES.index((IN_PLACE[0], tier))] = sign * share
            matrix, right = np.vstack([matrix, rows]), np.concatenate([right, np.zeros(len(rows))])
        for level, tier in ((ON_HOST, "host"), (ANYWHERE, "disk")):
            if self._allowed < level:
                most[SHARES.index(("activations", tier))] = 0.0
        limits = np.column_stack([np.zeros(len(cost)), most])
        ones, status = np.ones(len(KINDS)), "not tried"
        for presolve in (True, False):  # without it the solver tells infeasible from unbounded
            options = {"presolve": presolve}
            result = linprog(cost, matrix, right, sums, ones, limits, method="highs-ds", options=options)
            if result.status in (OPTIMAL, INFEASIBLE):
                return result
            status = str(result.message)
        raise PolicyError(f"the linear program of a placement could not be solved: {status}")

    def _duals(self, marginals: Numbers, names: Sequence[str]) -> Duals:
        """The optimum's multipliers, from those of scaled rows and of seconds per block."""
        count, (full, blocks) = len(self.table.rows), self._blocks
        values = np.maximum(0.0, marginals)
        bounds = values[count : count + len(names)]
        over = dict(zip(names, (float(value) for value in bounds), strict=True))
        latency = over.pop(LATENCY, 0.0) * blocks / full
        rest = values[count + len(names) :]
        return Duals(
            rows=self._summing(values[:count], 1 + latency),
            rest_rows=self._summing(rest if len(rest) else np.zeros(count), 1.0),
            over={name: value * self._unit_s / self.scale(name) for name, value in over.items()},
            latency=latency,
        )

    def _excess_duals(self, marginals: Numbers, names: Sequence[str]) -> Duals:
        """The multipliers of a shortage: excess counts in units of time and bytes there."""
        count, values = len(self.table.rows), np.maximum(0.0, marginals)
        over = dict(zip(names, (float(value) for value in values[count:]), strict=True))
        latency = over.pop(LATENCY, 0.0) / self._unit_s
        scaled = {name: value / self.scale(name) for name, value in over.items()}
        return Duals(self._summing(values[:count], latency), [0.0] * count, scaled, latency)

    def _summing(self, values: Numbers, target: float) -> list[float]:
        """Multipliers of rows so that those of each phase sum to `target`, unless all are 0."""
        sums = -self._phases.T @ values
        factors = np.divide(target, sums, out=np.zeros_like(sums), where=sums > 0)
        return [float(value) for value in values * (-self._phases @ factors)]

    def _at(self, shares: Mapping[Share, float], duals: Duals) -> Optimum:
        """Seconds at these shares."""
        point = np.array([shares[share] for share in self._variables])
        prefill_s, decode_s = self._phase_seconds(*self._times, point)
        job_s = self._blocks[0] * (prefill_s + decode_s)
        if self._rest_times is not None:
            job_s += sum(self._phase_seconds(*self._rest_times, point))
        return Optimum(shares, prefill_s, decode_s, job_s, duals)

    def _phase_seconds(self, constants: Numbers, coefficients: Numbers, point: Numbers) -> tuple[float, float]:
        """(prefill, decode): the longest of each one's rows."""
        rows = constants + coefficients @ point
        prefill, decode = (float(rows[self._phases[:, phase] < 0].max()) for phase in range(len(PHASES)))
        return prefill, decode

    def _cleaned(self, values: Numbers) -> dict[Share, float]:
        """Shares without what the solver's arithmetic left of nothing; those of a kind sum to one."""
        shares: dict[Share, float] = {}
        for number, kind in enumerate(KINDS):
            some = np.clip(values[3 * number : 3 * number + 3], 0.0, 1.0)
            some[some < NEGLIGIBLE_SHARE] = 0.0
            for place, share in enumerate(some / some.sum()):
                shares[kind, SHARES[3 * number + place][1]] = float(share)
        away, (least, most) = sum(shares[IN_PLACE[0], tier] for tier in ("host", "disk")), self.table.in_place
        found = float(values[len(SHARES)]) if IN_PLACE in self._variables else 0.0
        found = 0.0 if found < NEGLIGIBLE_SHARE else found
        shares[IN_PLACE] = min(max(found, least * away), most * away)
        return shares
