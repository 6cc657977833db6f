"""Lets a session's port make ready what a job needs before the job comes to it; it knows no kernel and no compiler."""

from flexref.backend.compiling import compile_time
from flexref.backend.protocol import Backend
from flexref.block.memory_plan import BlockPlan
from flexref.block.planned_block import PlannedBlock
from flexref.block.rehearsal import rehearse


class Rehearsals:
    """Those of one session: a block like the latest one needs none."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._latest: tuple[BlockPlan, bool] | None = None

    def of(self, planned: PlannedBlock, apart: bool) -> None:
        """The port begins to compile what `planned` will call, beside all that comes before its first pass.

        apart: whether rows have bits of their own.
        """
        if self._latest != (planned.memory, apart):
            self._latest = planned.memory, apart
            compile_time(self._backend).rehearse(lambda port: rehearse(port, planned, apart))
