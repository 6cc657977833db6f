"""A model on any port, checked operator by operator and token by token; it knows no command line and no contract."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage
from flexref.backend.protocol import Backend
from flexref.check.carried import Carried
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Findings
from flexref.check.tokencheck import OnVisit, Tokens, compare_tokens, differing_bits, run_engine
from flexref.errors import FlexrefError
from flexref.policy import Policy
from flexref.storage.weightfile import WeightFile, open_weight_file, resolve
from flexref.text.prompts import Prompt, all_token_ids
from flexref.text.tokenizer import Tokenizer

PROMPT_TOKENS = (1, 7, 17)
"""Rows that are checked where no prompt is given: a single token, and more than kernels take at a time."""


@dataclass(frozen=True, slots=True)
class PortCheck:
    """What to run: a weight file (or `demo`) on the port that `make_port` makes, greedily from `prompts`.

    `options` are those of `engine.load`: policy, keep, budgets, disk_dir. Without prompts, rows of random tokens.
    `layers`: how many decoder layers to check, spread evenly; None for all.
    """

    model: str
    make_port: Callable[[], Backend]
    prompts: Sequence[Prompt] = ()
    max_new_tokens: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: int | None = None


@dataclass(slots=True)
class PortReport:
    """What a check found. `ended`: why the run did not come to its end, None if it did.

    `tokens`, and `unsteady`, how the logits of a run without checks differ, are None where there is nothing to say.
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

    @property
    def fault(self) -> str | None:
        """The one line that says what is wrong: an operator, else a token, else the bits; None if nothing is."""
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
        """Which decoder layers were checked."""
        chosen = self.findings.layers
        return [layer for layer in range(self.spec.layers) if chosen is None or layer in chosen]

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for `json.dumps`."""
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
        }


def check_port(job: PortCheck, on_visit: OnVisit | None = None) -> PortReport:
    """Run the job with every operator checked, then as it is, then by a reference; `on_visit` is told how far it is.

    Raises what `engine.load` and `Engine.generate` raise, unless an operator is at fault by then; `FlexrefError` for a
    port that computes nothing.
    """
    file, port = open_weight_file(resolve(job.model)), job.make_port()
    findings = Findings(_spread(job.layers, file.spec.layers))
    try:
        if not port.caps.computes:
            raise FlexrefError(f"backend {port.name} computes nothing: there is nothing to check")
        prompts = _token_ids(job, file)
    except BaseException:
        port.close()
        raise
    report = PortReport(port.name, file.spec, port.caps.compute_dtype, [len(row) for row in prompts], findings)
    checked = CheckedBackend(port, findings, Carried(findings, file))

    def visited(stage: Stage, group: int, turn: int) -> None:
        findings.on_visit(stage, group, turn)
        if on_visit is not None:
            on_visit(stage, group, turn)

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
    except FlexrefError as error:  # memory that an operator forgot to write holds other bytes each time
        if findings.worst is None or findings.worst.within:
            raise
        report.unsteady = f"it ended with: {error}"
    else:
        report.unsteady = differing_bits(run, again)
    report.tokens = compare_tokens(file, prompts, run, job.options.get("disk_dir"))
    return report


def _token_ids(job: PortCheck, file: WeightFile) -> list[tuple[int, ...]]:
    """Every prompt as token ids."""
    spec, prompts = file.spec, job.prompts
    if not prompts:
        draw = np.random.default_rng(0)
        lengths = [min(count, max(1, spec.positions - job.max_new_tokens)) for count in PROMPT_TOKENS]
        prompts = [Prompt(token_ids=tuple(draw.integers(0, spec.vocabulary, count).tolist())) for count in lengths]
    tokenizer = None if file.tokenizer_json is None else Tokenizer.from_json(file.tokenizer_json, file.path)
    return all_token_ids(prompts, tokenizer, spec.vocabulary, spec.positions, job.max_new_tokens)


def _spread(count: int | None, layers: int) -> list[int] | None:
    """Which layers to check: the first, the last, and others evenly between them."""
    return (
        None if count is None else [round(place) for place in np.linspace(0, layers - 1, min(count, layers)).tolist()]
    )
