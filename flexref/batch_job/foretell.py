"""What a job is to take on its machine: seconds, bytes written to disk, the rates of links; it runs nothing."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flexref.batch_job.states import JobFacts
from flexref.block.counted_rows import CountedRows
from flexref.block.rows import RowLengths
from flexref.engine.generation import GenerationJob
from flexref.engine.session import Session
from flexref.errors import CapacityError, PolicyError
from flexref.machine.machine import WEIGHT_FILE, Machine
from flexref.planner.predicted import predicted
from flexref.policy import Policy
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import simulate
from flexref.units import LINKS, MIB

LARGE_COPY_BYTES = 64 * MIB
"""A copy as large as this reaches a link's rate."""

LOG = logging.getLogger(__name__)


def rates(machine: Machine) -> dict[str, float]:
    """Bytes per second of large copies over each link; weights are read from disk past the page cache."""
    found = {link: machine.copies[link].per_s(LARGE_COPY_BYTES) for link in LINKS}
    found["disk->host"] = machine.copies[WEIGHT_FILE].per_s(LARGE_COPY_BYTES)
    return found


def as_many(sample: Sequence[RowLengths], rows: int) -> CountedRows:
    """`rows` rows of the lengths that are in `sample`, each as often as there, as far as that goes up.

    Prefixes that rows share are left out: how many more rows share them is not known.
    """
    whole, rest = divmod(rows, len(sample))
    counts = np.full(len(sample), whole, np.int64)
    counts[:rest] += 1
    some = counts > 0
    prompts = np.array([row.prompt_tokens for row in sample], np.int64)[some]
    new = np.array([row.new_tokens for row in sample], np.int64)[some]
    return CountedRows.of_runs(prompts, new, counts[some])


def foretold(session: Session, machine: Machine, policy: Policy, rows: CountedRows) -> Prediction:
    """What `rows` are to take there. Rows are as long as they may become, so that seconds are at most these.

    Raises `CapacityError` and `PolicyError` as `simulate` does.
    """
    return predicted(
        rows, policy.rows_per_block, lambda some: simulate(session.file, machine, policy, some, session.budgets)
    )


class Foretelling:
    """Adds to what is known of a job what its machine is to take for it; nothing where no machine is known."""

    def __init__(self, machine: Machine | None) -> None:
        self._machine = machine

    def __call__(self, facts: JobFacts, job: GenerationJob, lines_seen: int) -> JobFacts:
        """The facts with what is predicted, from the lengths of the job's first rows, which `lines_seen` lines want.

        Rows are as long as they may become: what ends earlier takes less.
        """
        machine = self._machine
        if machine is None or not job.lengths or facts.lines is None:
            return facts
        left = facts.lines - facts.lines_before
        facts = replace(facts, machine=machine.name, rates=rates(machine))
        rows = max(1, round(left * len(job.lengths) / max(1, lines_seen)))
        try:
            found = foretold(job.session, machine, job.policy, as_many(job.lengths, rows))
        except (CapacityError, PolicyError) as error:
            LOG.info("what the job is to take on %s cannot be predicted: %s", machine.name, error)
            return facts
        return replace(facts, predicted_s=found.whole_s)
