"""What a job whose input was validated will take: the policy that it would run by, seconds, money, bytes to disk."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from flexref.batch_job.foretell import as_many, foretold
from flexref.batch_job.prepared import Prepared
from flexref.batch_job.validation import Validation
from flexref.json_types.values import Number, Whole
from flexref.machine.machine import Machine
from flexref.machine.price import SECONDS_PER_HOUR
from flexref.policy import Policy
from flexref.simulator.prediction import Prediction

ANSWER_TIMES = 2
"""An answer is written twice: to the journal, and to the output."""

ENVELOPE_BYTES, TOKEN_BYTES = 420, 5
"""Of an answer, about: what stands around its text, and the text of a token."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """What a job is to take on its machine, every row as long as it may become."""

    policy: Annotated[Policy, "The policy that it would run by."]
    machine: Annotated[str, "The machine that it is predicted for."]
    prediction: Annotated[Prediction, "What it is to take."]
    seconds: Annotated[float, Number(0), "Seconds in all, with those to load the weights."]
    cost_usd: Annotated[float | None, Number(0), "What the machine costs for so long; null if its price is unknown."]
    spilled_bytes: Annotated[int, Whole(0), "Bytes of cache and activations that are written to disk."]
    answer_bytes: Annotated[int, Whole(0), "Bytes of answers, about, that are written to journal and output."]

    @property
    def disk_write_bytes(self) -> int:
        """All that is written to disk."""
        return self.spilled_bytes + self.answer_bytes

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {
            "policy": asdict(self.policy),
            "machine": self.machine,
            "prediction": self.prediction.to_json(),
            "seconds": self.seconds,
            "cost_usd": self.cost_usd,
            "spilled_bytes": self.spilled_bytes,
            "answer_bytes": self.answer_bytes,
            "disk_write_bytes": self.disk_write_bytes,
        }


def planned(prepared: Prepared, found: Validation, usd_per_hour: float | None) -> PlannedJob | None:
    """Choose the policy that the job would run by, and predict it; None if no line can be served.

    This machine is measured if it is not known. Raises what choosing a policy raises.
    """
    if not found.sample:
        return None
    with prepared.engines().open() as engine:
        session = engine.session
        policy = session.settled(found.sample)
        machine: Machine = prepared.settling.machines.measured(session.backend, session.disk_dir, None)
        prediction = foretold(session, machine, policy, as_many(found.sample, found.rows))
    seconds = prediction.whole_s
    cost = None if usd_per_hour is None else seconds / SECONDS_PER_HOUR * usd_per_hour
    answers = ANSWER_TIMES * (found.lines * ENVELOPE_BYTES + found.new_tokens * TOKEN_BYTES)
    return PlannedJob(policy, machine.name, prediction, seconds, cost, prediction.disk_write_bytes, answers)
