"""Arenas: every byte of a tier is counted before it is used, by who holds it; they know no policy and no model."""

from collections import Counter
from collections.abc import Callable, Mapping

from flexref.backend.protocol import Buffer
from flexref.errors import CapacityError
from flexref.tiers.transfer import DiskFile, Region
from flexref.units import ALIGNMENT_BYTES, Tier, aligned


class Arena:
    """The budget of one tier. `held_bytes` never exceeds it, nor does `peak_bytes`, the most since `restart_peak`."""

    def __init__(
        self,
        tier: Tier,
        budget_bytes: int | None,
        allocate: Callable[[int], Buffer | DiskFile],
        release: Callable[[Buffer | DiskFile], None],
    ) -> None:
        """`allocate` gets memory of that many bytes once they are counted, `release` gives it back; no budget: None."""
        self.tier, self.budget_bytes = tier, budget_bytes
        self.peak_bytes = 0
        self._allocate, self._release = allocate, release
        self._holders: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._holders.total()

    def restart_peak(self) -> None:
        """Let the peak be that of what is held from now on."""
        self.peak_bytes = self.held_bytes

    @property
    def holders(self) -> Mapping[str, int]:
        """Bytes that are held now, by holder."""
        return +self._holders

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
