"""How far a stream reads ahead from disk when rows come that leave less memory for it; it runs nothing."""

from collections.abc import Sequence
from contextlib import suppress

from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import RowLengths
from flexref.engine.events import Notice
from flexref.engine.session import Session
from flexref.errors import CapacityError, in_gib
from flexref.policy import Policy
from flexref.units import GIB


class ReadingLess:
    """The policy of a stream under which less is read ahead, one notice each time if more was asked for."""

    def __init__(self, session: Session, policy: Policy, lengths: Sequence[RowLengths]) -> None:
        """`policy` was settled for rows of such `lengths`."""
        self._session, self._settled, self._lengths = session, policy, lengths
        self._asked: bool | None = None

    def planned(self, policy: Policy, lengths: Sequence[RowLengths]) -> tuple[Policy, PlannedBlock] | None:
        """`policy` and the block for rows that fit if less is read ahead from disk than rows before them left room
        for; None if they do not even then, or nothing is read ahead.
        """
        if not policy.read_ahead_gib:
            return None
        try:
            found = self._session.reading_ahead(policy.changed(read_ahead_gib=None), lengths)
            planned = self._session.planned(found, lengths)
        except CapacityError:
            return None
        if self._was_asked():
            left = in_gib(int((found.read_ahead_gib or 0) * GIB))
            asked = in_gib(int(policy.read_ahead_gib * GIB))
            self._session.on_event(
                Notice(
                    f"weights are read ahead from disk into {left} of the host from here on, not {asked}: rows that "
                    "came leave no room for more; --host-mem-gib gives more"
                )
            )
        return found, planned

    def _was_asked(self) -> bool:
        """Whether the stream's policy says how far, and not what its first rows left room for."""
        if self._asked is None:
            self._asked = True
            with suppress(CapacityError):
                of_itself = self._session.reading_ahead(self._settled.changed(read_ahead_gib=None), self._lengths)
                self._asked = of_itself != self._settled
        return self._asked
