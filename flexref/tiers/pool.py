"""Arenas: every byte of a tier is counted before it is used, by who holds it; they know no policy and no model."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from flexref.errors import CapacityError
from flexref.tiers.transfer import Region
from flexref.units import ALIGNMENT_BYTES, Tier, aligned

Allocate = Callable[[int], Any]
"""Gets a port's buffer or a file of so many bytes, which says its size: `nbytes`."""

Release = Callable[[Any], None]


class Arena:
    """The budget of one tier. `held_bytes` never exceeds it, nor does `peak_bytes`, the most since `restart_peak`.

    An arena that `keeps` hands what was given back to whoever asks next, while the budget has room for it.
    """

    def __init__(
        self,
        tier: Tier,
        budget_bytes: int | None,
        allocate: Allocate,
        release: Release,
        *,
        keeps: bool = False,
    ) -> None:
        """`allocate` gets memory of that many bytes once they are counted, `release` gives it back; no budget: None.
        Nothing is kept without a budget.
        """
        self.tier, self.budget_bytes = tier, budget_bytes
        self.peak_bytes = 0
        self._kept = KeptMemory(allocate, release, lambda: self.held_bytes, budget_bytes or 0) if keeps else None
        self._allocate = allocate if self._kept is None else self._kept.allocate
        self._release = release if self._kept is None else self._kept.give_back
        self._holders: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._holders.total()

    @property
    def kept_bytes(self) -> int:
        """Bytes that nobody holds and that are kept."""
        return 0 if self._kept is None else self._kept.kept_bytes

    def give_up_kept(self) -> None:
        """Keep nothing of what nobody holds."""
        if self._kept is not None:
            self._kept.release_all()

    def restart_peak(self) -> None:
        """Let the peak be that of what is held from now on."""
        self.peak_bytes = self.held_bytes

    @property
    def holders(self) -> Mapping[str, int]:
        """Bytes that are held now, by holder."""
        return +self._holders

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more, with their alignment, are within the budget."""
        return self.budget_bytes is None or self.held_bytes + aligned(nbytes, ALIGNMENT_BYTES) <= self.budget_bytes

    def count(self, holder: str, nbytes: int) -> None:
        """Count bytes that somebody else allocates, a port's scratch say; `CapacityError` if they do not fit."""
        if self.budget_bytes is not None and self.held_bytes + nbytes > self.budget_bytes:
            raise CapacityError(self.tier.value, holder, nbytes, self.budget_bytes - self.held_bytes, self.holders)
        self._holders[holder] += nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def take(self, holder: str, nbytes: int) -> Region:
        """A region of `nbytes`, counted with its alignment; `CapacityError` names the tier and who holds the rest."""
        whole, peak_bytes = aligned(nbytes, ALIGNMENT_BYTES), self.peak_bytes
        self.count(holder, whole)
        try:
            place = self._allocate(whole)
        except BaseException:
            self._holders[holder] -= whole
            self.peak_bytes = peak_bytes
            raise
        return Region(self.tier, place, 0, whole)

    def give_back(self, holder: str, region: Region) -> None:
        """Return a region that `take` gave to `holder`."""
        if self._holders[holder] < region.nbytes:
            raise ValueError(f"{holder} holds {self._holders[holder]} bytes and returns {region.nbytes}")
        self._holders[holder] -= region.nbytes
        self._release(region.place)


class KeptMemory:
    """Stands between an arena and its port, and keeps what was given back for whoever asks for as many bytes next.

    What is kept is never beyond `budget_bytes` together with what the arena holds: it is given up, what was given back
    first before all else, for whoever needs the room.
    """

    def __init__(self, allocate: Allocate, release: Release, held_bytes: Callable[[], int], budget_bytes: int) -> None:
        """`held_bytes` are the arena's, what is asked for just now among them."""
        self._allocate, self._release, self._held_bytes, self._budget = allocate, release, held_bytes, budget_bytes
        self._kept: list[Any] = []

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for whoever asks next."""
        return sum(place.nbytes for place in self._kept)

    def allocate(self, nbytes: int) -> Any:
        """A kept place of that size, or a new one; raises what the port does once nothing is kept any more."""
        for number, place in enumerate(self._kept):
            if place.nbytes == nbytes:
                return self._kept.pop(number)
        self._make_room()
        try:
            return self._allocate(nbytes)
        except CapacityError:
            if not self._kept:
                raise
        self.release_all()
        return self._allocate(nbytes)

    def give_back(self, place: Any) -> None:
        """Keep a place, which nobody uses any more."""
        self._kept.append(place)
        self._make_room()

    def release_all(self) -> None:
        """Give the port back what is kept."""
        while self._kept:
            self._release(self._kept.pop(0))

    def _make_room(self) -> None:
        while self._kept and self._held_bytes() + self.kept_bytes > self._budget:
            self._release(self._kept.pop(0))
