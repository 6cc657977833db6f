"""Runs in place of `flexref` in the process of a run: it lays the plan, and lets the command do as it always does."""

import json
import os
from typing import Any

from hostile_batch_run.calls import FailingCalls
from hostile_batch_run.plan import VARIABLE, Plan


def command() -> Any:
    """`flexref`, with what the environment says that is to happen to it."""
    from flexref.__main__ import main

    plan = Plan(**json.loads(os.environ[VARIABLE]))
    if plan.log is not None:
        _log_answers(plan.log)
    calls = FailingCalls(plan)
    calls.install()
    try:
        return main()
    finally:
        if plan.counts is not None:
            with open(plan.counts, "w", encoding="utf-8") as file:
                json.dump(calls.counts, file)


def _log_answers(path: str) -> None:
    """Write down the number of every line that is answered, so that it stays whatever ends the process."""
    from flexref.batch_job.recorder import Recorder

    descriptor, add = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), Recorder.add

    def logged(self: Recorder, answer: Any) -> None:
        os.write(descriptor, b"%d\n" % answer.number)
        add(self, answer)

    Recorder.add = logged  # type: ignore[method-assign]
