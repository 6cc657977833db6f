"""Runs a batch job on the workers of a Dask cluster; its answers are made durable here, by one journal."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.cluster.engine_server import EngineOpening
from flexref.batch_job.cluster.leases import Leases
from flexref.batch_job.cluster.serve_on_cluster import ClusterServing
from flexref.batch_job.job import BatchJob
from flexref.batch_job.states import JobState
from flexref.engine.engine import Engine

if TYPE_CHECKING:
    from distributed import Client


@dataclass(kw_only=True)
class ClusterJob(BatchJob):
    """A job whose lines are answered by the workers of `client`, as `leases` gives them out.

    `opening`: how each opens its engine. Those of this process are never opened, and it serves no lines itself.
    """

    client: "Client"
    opening: EngineOpening
    leases: Leases
    _prompt_tokens: int = field(init=False, default=0)
    _generated_tokens: int = field(init=False, default=0)

    def answers(self) -> Generator[LineAnswer, None, None]:
        """The answers as they come from the workers; once the job is to stop, those that there are."""
        if self.facts.lines is not None and self.keeper.done_lines >= self.facts.lines:
            return  # an earlier run has answered all
        self._tell_of_begin()
        serving = ClusterServing(self.client, self.opening, self.leases, self.happened)
        self.stop.check()
        with closing(serving.run(lambda: self.stop.reason is not None)) as answers:
            for answer in answers:
                if answer is not None:
                    self._prompt_tokens += answer.prompt_tokens
                    self._generated_tokens += answer.generated_tokens
                    yield answer
                else:
                    self._tell(self._state())
        self.stop.check()

    def _state(self, engine: Engine | None = None) -> JobState:
        """Of tokens the workers' answers tell; their passes, lanes and tiers are theirs."""
        state = super()._state()
        return replace(
            state,
            working_s=state.at_s,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )
