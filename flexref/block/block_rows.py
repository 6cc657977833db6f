"""The rows of a block, group by group, and those that wait: who comes and who leaves between passes."""

from collections.abc import Sequence

from flexref.block.admission import Admission, Waiting
from flexref.block.group import Group
from flexref.block.rows import Judge, TokenEvent
from flexref.tiers.cache_plan import CachePlan


class BlockRows:
    """The groups of a block. What waits has come in as far as there is room, when it is made and after every pass."""

    def __init__(self, cache: CachePlan, waiting: Waiting, prompt_chunk_tokens: int | None) -> None:
        self.waiting, self.admission = waiting, Admission(cache.groups, waiting, cache.prefix_tokens)
        self.groups = [
            Group(number, room, cache.in_order, prompt_chunk_tokens) for number, room in enumerate(cache.groups)
        ]
        self._next_pass = [0] * len(self.groups)
        self._no_more_from: int | None = None
        for group in self.groups:
            self.admission.renew(group)

    def alive(self) -> bool:
        """Whether any row is in the block."""
        return any(group.rows for group in self.groups)

    def goes_on(self, pass_number: int) -> bool:
        """Whether that pass may come, asked in the one before it.

        It does if a row waits, if a group that has been renewed for it has a row, or if a row of another group may not
        end with its next token. Once it has been said that it does not come, it does not: nothing is loaded for it, so
        no row enters for it either, and one that arrives after that is for another block.
        """
        comes = len(self.waiting) > 0 or any(
            bool(group.rows) if self._next_pass[number] == pass_number else group.lasts_longer()
            for number, group in enumerate(self.groups)
        )
        if not comes:
            self._no_more_from = pass_number
        return comes

    def end_pass(self, number: int, token_ids: Sequence[int], judge: Judge) -> list[TokenEvent]:
        """A pass is over for one group, which may be empty: its rows get their tokens; then it is renewed."""
        events = self.groups[number].accept(token_ids, judge)
        self.renew(number)
        return events

    def renew(self, number: int) -> None:
        """A pass is over for the group: rows that ended leave it, waiting ones take their places."""
        self._next_pass[number] += 1
        self.admission.renew(self.groups[number], closed=self._next_pass[number] == self._no_more_from)

    def skip_pass(self) -> None:
        """Let a pass go by that nobody runs, for all groups: every row gets some token; rows come and leave."""
        for group in self.groups:
            group.accept([0] * len(group.ready), lambda row: None)
            self.admission.renew(group)
        self.waiting.refill()
