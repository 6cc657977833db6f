"""Runs a model on a port and checks every operator and token; it knows no command line and no contract."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Backend
from flexref.check.carried import Carried
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Findings
from flexref.check.operands.file import OperandsWriter
from flexref.check.operands.recorder import OperandRecorder
from flexref.check.tokencheck import OnVisit, Tokens, compare_tokens, differing_bits, run_engine, telling
from flexref.errors import FlexrefError
from flexref.policy import Policy
from flexref.storage.names import resolve
from flexref.storage.weightfile import WeightFile, open_weight_file
from flexref.text.prompts import Prompt, all_token_ids
from flexref.text.tokenizer import Tokenizer

PROMPT_TOKENS = (1, 7, 17)
"""Lengths of the random rows that are checked where no prompt is given: one token, and more than a kernel's tile."""


@dataclass(frozen=True, slots=True)
class PortCheck:
    """What to run: `model` (a weight file or `demo`) on the port that `make_port` makes, greedily from `prompts`.

    `make_port` is called twice, since the run is repeated without checks. Without prompts, rows of random tokens run.
    `options`: those of `flexref.load` (policy, keep, budgets, disk_dir).
    `layers`: how many decoder layers to check, spread evenly over the model; None for all.
    `record`: the file that operands of a run go to, in which nothing is checked; None for none.
    """

    model: str
    make_port: Callable[[], Backend]
    prompts: Sequence[Prompt] = ()
    max_new_tokens: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: int | None = None
    record: str | None = None


@dataclass(slots=True)
class PortReport:
    """What a check found.

    `ended`: why the run stopped early, None if it did not. `tokens`: the tokens beside the reference's, None if the run
    stopped early. `unsteady`: how the run without checks differed; None if its logits were the same to the bit, or if
    it was not made. `recorded_calls`: calls whose operands were kept; None where that was not asked for.
    """

    backend: str
    spec: ModelSpec
    compute_dtype: str
    prompt_tokens: list[int]
    findings: Findings
    policy: Policy | None = None
    ended: str | None = None
    tokens: Tokens | None = None
    unsteady: str | None = None
    recorded_calls: int | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong, in one line: an operator, else a token, else bits that differ; None if nothing is."""
        worst = self.findings.worst
        if worst is not None and not worst.within:
            return str(worst)
        wrong = [] if self.tokens is None else [part for part in self.tokens.differences if part.tie is False]
        if wrong:
            return f"every operator is right on its own operands, but a token is not: {wrong[0]}"
        if self.unsteady is not None:
            return (
                f"the same run without checks gives other logits ({self.unsteady}): an operator does not repeat its "
                "bits, or does not wait for what it reads"
            )
        return None

    @property
    def checked_layers(self) -> list[int]:
        """The numbers of the decoder layers that were checked."""
        chosen = self.findings.layers
        return [layer for layer in range(self.spec.layers) if chosen is None or layer in chosen]

    def to_json(self) -> dict[str, Any]:
        """The whole report as an object for `json.dumps`."""
        return {
            "backend": self.backend,
            "model": self.spec.name,
            "compute_dtype": self.compute_dtype,
            "policy": None if self.policy is None else json.loads(self.policy.to_json()),
            "prompt_tokens": self.prompt_tokens,
            "checked_layers": self.checked_layers,
            "checked_calls": self.findings.calls,
            "skipped_calls": self.findings.skipped_calls,
            "operators": self.findings.to_json(),
            "ended": self.ended,
            "tokens": None if self.tokens is None else self.tokens.to_json(),
            "unsteady": self.unsteady,
            "recorded_calls": self.recorded_calls,
        }


def check_port(job: PortCheck, on_visit: OnVisit | None = None) -> PortReport:
    """Run the job three times: with every operator checked, without checks, and by the reference.

    `on_visit` is called at every visit of the checked run, for a progress display. Raises `FlexrefError` for a port
    that computes nothing, and what `flexref.load` and `Engine.generate` raise. Where an operator has been found wrong
    by then, the report says that the run ended, and nothing is raised.
    """
    file, port = open_weight_file(resolve(job.model)), job.make_port()
    findings = Findings(_spread(job.layers, file.spec.layers))
    try:
        if not port.caps.computes:
            raise FlexrefError(f"backend {port.name} computes nothing: there is nothing to check")
        prompts = prompt_ids(job, file)
    except BaseException:
        port.close()
        raise
    report = PortReport(port.name, file.spec, port.caps.compute_dtype, [len(row) for row in prompts], findings)
    checked = CheckedBackend(port, findings, Carried(findings, file))
    visited = telling(findings.on_visit, on_visit)
    try:
        run = run_engine(file, checked, prompts, job.max_new_tokens, job.options, visited)
    except FlexrefError as error:
        if findings.worst is None or findings.worst.within:
            raise
        report.ended = str(error)
        return report
    report.policy = run.policy
    options = {**job.options, "policy": run.policy, "keep": None}
    try:
        again = run_engine(file, job.make_port(), prompts, job.max_new_tokens, options)
    except FlexrefError as error:  # an operator that leaves memory unwritten may fail in one run and not in the other
        if findings.worst is None or findings.worst.within:
            raise
        report.unsteady = f"it ended with: {error}"
    else:
        report.unsteady = differing_bits(run, again)
    report.tokens = compare_tokens(file, prompts, run, job.options.get("disk_dir"))
    if job.record is not None:
        report.recorded_calls = _record(job, job.record, file, prompts, options)
    return report


def _record(
    job: PortCheck, path: str, file: WeightFile, prompts: Sequence[tuple[int, ...]], options: Mapping[str, Any]
) -> int:
    """Run the job once more and keep the operands of its operators in the file `path`; how many calls it has."""
    port = job.make_port()
    with OperandsWriter(path, {"compute_dtype": port.caps.compute_dtype, "model": file.spec.name}) as writer:
        run_engine(file, OperandRecorder(port, writer), prompts, job.max_new_tokens, options)
        return writer.calls


def prompt_ids(job: PortCheck, file: WeightFile) -> list[tuple[int, ...]]:
    """Every prompt as token ids; random ones if there is no prompt."""
    spec, prompts = file.spec, job.prompts
    if not prompts:
        draw = np.random.default_rng(0)
        lengths = [min(count, max(1, spec.positions - job.max_new_tokens)) for count in PROMPT_TOKENS]
        prompts = [Prompt(token_ids=tuple(draw.integers(0, spec.vocabulary, count).tolist())) for count in lengths]
    tokenizer = Tokenizer.if_any(file.tokenizer_json, file.path)
    return all_token_ids(prompts, tokenizer, spec.vocabulary, spec.positions, job.max_new_tokens)


def _spread(count: int | None, layers: int) -> list[int] | None:
    """The numbers of `count` layers: the first, the last, and others spread evenly between them; None for all."""
    return (
        None if count is None else [round(place) for place in np.linspace(0, layers - 1, min(count, layers)).tolist()]
    )
