"""Stop strings in a growing text: shows what is safe, holds back what may become one; it knows no tokens."""

from collections.abc import Sequence

from flexref.errors import PromptError


class StopMatcher:
    """Cuts one growing text before its earliest stop string, wherever the text is cut into pieces.

    The stop string that starts first wins; of two that start together, the one that is whole first. While an earlier
    start may still become a stop string, a later one that is whole already waits for it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` may be empty; an empty stop string is a `PromptError`."""
        if "" in stops:
            raise PromptError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that was found, or None so far; once it is set, no more text comes."""
        return self._matched

    def push(self, text: str) -> str:
        """The part of the held and the new text that no stop string can begin in any more."""
        if self._matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        start, stop = self._first_whole()
        pending = self._first_pending()
        if stop is not None and start <= pending:
            return self._cut(start, stop)
        return self._release(pending)

    def finish(self) -> str:
        """The rest: all that is held, or, if a whole stop string waited there, what stands before it."""
        if self._matched is not None:
            return ""
        start, stop = self._first_whole()
        return self._release(len(self._held)) if stop is None else self._cut(start, stop)

    def _first_whole(self) -> tuple[int, str | None]:
        """Start of the earliest whole stop string in the held text, the shortest of those, and which it is."""
        found = ((self._held.find(stop), len(stop), stop) for stop in self._stops)
        start, _, stop = min((match for match in found if match[0] >= 0), default=(-1, 0, None))
        return start, stop

    def _first_pending(self) -> int:
        """The earliest place from which all that is held begins a stop string; its length if there is none."""
        length = len(self._held)
        longest = max((len(stop) for stop in self._stops), default=1)
        for start in range(max(0, length - longest + 1), length):
            tail = self._held[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return length

    def _cut(self, start: int, stop: str) -> str:
        text, self._held, self._matched = self._held[:start], "", stop
        return text

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
