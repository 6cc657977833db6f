"""Which places for caches of a group are free: rows that enter take them, those that leave give them back.

A row's records lie in one run. Of the free runs that are long enough the shortest is taken, so that long ones last.
"""

from bisect import insort
from collections.abc import Iterator

from flexref.block.rows import SharedPrefix
from flexref.tiers.cache_plan import GroupRoom, RowPlace
from flexref.units import Tier


class TierPlaces:
    """The free runs of records of one group on one tier, for at most `rows` rows; attention for them runs in one place.

    They begin with record `first` of the tier's.
    """

    def __init__(
        self, home: Tier, tokens: int, rows: int, *, first: int = 0, in_place: bool = False, shared: bool = False
    ) -> None:
        self.home, self.rows_left, self._shared, self.in_place = home, rows, shared, in_place
        self._free = [(first, first + tokens)] if tokens else []
        """(first, end) of every free run, in order; no two of them touch."""

    @property
    def longest(self) -> int:
        """Tokens of the longest run that a row may take now."""
        return max((end - first for first, end in self._free), default=0) if self.rows_left else 0

    def take(self, tokens: int) -> RowPlace | None:
        """A place for so many tokens; None if no run is long enough, or there are as many rows as there may be."""
        fitting = [run for run in self._free if run[1] - run[0] >= tokens]
        if not fitting or not self.rows_left:
            return None
        first, end = min(fitting, key=lambda run: (run[1] - run[0], run[0]))
        self._free.remove((first, end))
        if first + tokens < end:
            insort(self._free, (first + tokens, end))
        self.rows_left -= 1
        return RowPlace(self.home, first, tokens, self._shared, self.in_place)

    def give_back(self, place: RowPlace) -> None:
        """Take back what `take` gave. `ValueError` if some of it is free."""
        if any(first < place.end and place.start < end for first, end in self._free):
            raise ValueError(f"{place} was given back, and some of it is free: {self._free}")
        first, end = place.start, place.end
        for run in [run for run in self._free if run[1] == first or run[0] == end]:
            self._free.remove(run)
            first, end = min(first, run[0]), max(end, run[1])
        insort(self._free, (first, end))
        self.rows_left += 1


class GroupPlaces:
    """The free places of one group: on the device first, then on the host, then on disk.

    On a tier those come first that are read in place, so that the longest rows of it have them.
    """

    def __init__(self, room: GroupRoom) -> None:
        self.rows_left = room.rows
        self._parts = {(tier, in_place): _part(room, tier, in_place) for tier in Tier for in_place in (True, False)}

    @property
    def longest(self) -> int:
        """The most tokens that a row may have that enters now."""
        return max(places.longest for places in self._parts.values()) if self.rows_left else 0

    def take(self, tokens: int) -> RowPlace | None:
        """A place for a row of so many tokens; None if there is none now."""
        if not self.rows_left:
            return None
        for places in self._parts.values():
            place = places.take(tokens)
            if place is not None:
                self.rows_left -= 1
                return place
        return None

    def give_back(self, place: RowPlace) -> None:
        """A row has left: take its place back."""
        self._parts[place.home, place.in_place].give_back(place)
        self.rows_left += 1

    def free_runs(self) -> Iterator[tuple[Tier, int, int]]:
        """(tier, first, end) of every free run of records, be it in one part of the tier or in both."""
        for tier in Tier:
            crossing, in_place = ([*self._parts[tier, part]._free] for part in (False, True))
            if crossing and in_place and crossing[-1][1] == in_place[0][0]:
                in_place[0] = crossing.pop()[0], in_place[0][1]
            for first, end in (*crossing, *in_place):
                yield tier, first, end


def _part(room: GroupRoom, tier: Tier, in_place: bool) -> TierPlaces:
    """The places of a group on a tier for rows of which attention runs on the host, or of the others."""
    within, crossing = room.in_place, room.crossing_tokens(tier)
    if in_place:
        rows = min(room.rows, within.new_tokens[tier])
        return TierPlaces(tier, within.tokens[tier], rows, first=crossing, in_place=True)
    return TierPlaces(tier, crossing, min(room.rows, room.new_tokens[tier] - within.new_tokens[tier]))


class PrefixPlaces:
    """The places of the prefixes that rows of a block share. One that nobody uses stays until its place is needed."""

    def __init__(self, tokens: int) -> None:
        self._places = TierPlaces(Tier.DEVICE, tokens, tokens, shared=True)
        self._idle: list[SharedPrefix] = []

    def fits(self, prefix: SharedPrefix | None) -> bool:
        """Whether a row that begins with it may enter, as far as that goes."""
        if prefix is None or prefix.reader is not None:
            return True
        while self._places.longest < len(prefix.tokens) and self._idle:
            self._places.give_back(self._idle.pop(0).end())
        return self._places.longest >= len(prefix.tokens)

    def enter(self, prefix: SharedPrefix, group: int) -> bool:
        """A row of the group begins with it, which `fits`. Whether it has to be read, in that group's visits."""
        prefix.users += 1
        if prefix in self._idle:
            self._idle.remove(prefix)
        if prefix.reader is not None:
            return False
        place = self._places.take(len(prefix.tokens))
        assert place is not None
        prefix.begin(place, group)
        return True

    def leave(self, prefix: SharedPrefix) -> None:
        """A row that began with it has left."""
        prefix.users -= 1
        if prefix.users:
            return
        if prefix.read_in is None:  # no row of it is left, and it is not read to its end
            self._places.give_back(prefix.end())
        else:
            self._idle.append(prefix)

    def release(self) -> None:
        """The block ends: give every place back."""
        while self._idle:
            self._places.give_back(self._idle.pop().end())
