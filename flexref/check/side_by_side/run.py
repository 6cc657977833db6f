"""Runs a model on two ports, operator by operator on the same operands, then each alone; it knows no command line."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flexref.backend.protocol import Backend
from flexref.check.portcheck import PortCheck, prompt_ids
from flexref.check.side_by_side.pairs import PairedPort, PairFindings
from flexref.check.tokencheck import OnVisit, TokenRun, run_engine, telling
from flexref.errors import FlexrefError, described
from flexref.policy import Policy
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file


@dataclass(frozen=True, slots=True)
class TokenParting:
    """The first pass in which two ports, each alone on the whole model, choose other tokens for a row.

    `logits`: of both tokens, on the first port and then on the second.
    """

    row: int
    turn: int
    tokens: tuple[int, int]
    logits: tuple[tuple[float, float], tuple[float, float]]

    def told(self, names: tuple[str, str]) -> str:
        """It in one line."""
        (one, two), (three, four) = self.logits
        return (
            f"row {self.row}, pass {self.turn}: token {self.tokens[0]} on {names[0]} (logits {one:.7g} and {two:.7g}), "
            f"{self.tokens[1]} on {names[1]} ({three:.7g} and {four:.7g})"
        )


@dataclass(slots=True)
class PairReport:
    """What two ports give. `ended`: why the run stopped early, None if it did not.

    `logits_apart`: by pass, how far logits are apart at most, over rows whose tokens were the same until then.
    """

    model: str
    findings: PairFindings
    prompt_tokens: list[int]
    policy: Policy | None = None
    ended: str | None = None
    partings: list[TokenParting] = field(default_factory=list)
    logits_apart: list[float] = field(default_factory=list)

    @property
    def fault(self) -> str | None:
        """The first divergence in one line; None if rounding explains all that differs."""
        first = self.findings.first
        return None if first is None else first.told(self.findings.names)

    def to_json(self) -> dict[str, Any]:
        """The whole report as an object for `json.dumps`."""
        return {
            "backends": list(self.findings.names),
            "model": self.model,
            "policy": None if self.policy is None else json.loads(self.policy.to_json()),
            "prompt_tokens": self.prompt_tokens,
            "compared_calls": self.findings.calls,
            "operators": [finding.to_json() for finding in self.findings.worst.values()],
            "first_divergence": None if self.findings.first is None else self.findings.first.to_json(),
            "ended": self.ended,
            "partings": [asdict(parting) for parting in self.partings],
            "logits_apart": self.logits_apart,
            "fault": self.fault,
        }


def compare_ports(
    job: PortCheck, make_second: Callable[[], Backend], names: tuple[str, str], on_visit: OnVisit | None = None
) -> PairReport:
    """Run the job on the port of `job` beside the one that `make_second` makes, then on the second one alone.

    `names`: what the two are called. `on_visit` is called at every visit of the first run. Raises `WrongCall` for ports
    in the wrong order, and what `flexref.load` and `Engine.generate` raise. Where a divergence has been found by then,
    the report says that the run ended, and nothing is raised.
    """
    file, first = open_weight_file(resolve(job.model)), job.make_port()
    try:
        second = make_second()
    except BaseException:
        first.close()
        raise
    try:
        pair: Any = PairedPort(first, second, names)
        prompts = prompt_ids(job, file)
    except BaseException:
        first.close()
        second.close()
        raise
    report = PairReport(file.spec.name, pair.findings, [len(row) for row in prompts])
    visited = telling(pair.on_visit, on_visit)
    try:
        run = run_engine(file, pair, prompts, job.max_new_tokens, job.options, visited)
        report.policy = run.policy
        options = {**job.options, "policy": run.policy, "keep": None}
        alone = run_engine(file, make_second(), prompts, job.max_new_tokens, options)
    except Exception as error:  # whatever a broken port raises
        if report.findings.first is None:
            raise
        report.ended = str(error) if isinstance(error, FlexrefError) else described(error)
        return report
    _compare_tokens(report, run, alone)
    return report


def _compare_tokens(report: PairReport, run: TokenRun, alone: TokenRun) -> None:
    """Note where tokens part, row by row, and how far logits are apart until then."""
    apart: dict[int, float] = {}
    for row, (ours, theirs) in enumerate(zip(run.tokens, alone.tokens, strict=True)):
        for turn, tokens in enumerate(zip(ours, theirs, strict=True)):
            one, other = (each.logits[row][turn].astype(np.float64) for each in (run, alone))
            apart[turn] = max(apart.get(turn, 0.0), float(np.abs(one - other).max()))
            if tokens[0] != tokens[1]:
                pairs = [(float(logits[tokens[0]]), float(logits[tokens[1]])) for logits in (one, other)]
                report.partings.append(TokenParting(row, turn, tokens, (pairs[0], pairs[1])))
                break
    report.logits_apart = [apart[turn] for turn in sorted(apart)]
