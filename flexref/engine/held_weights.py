"""The weights that a session holds from job to job: loads others where a job places them elsewhere; it knows no job."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from flexref.engine.events import OnEvent, WeightsLoaded
from flexref.engine.wall import NANOSECONDS, Wall, WallPart
from flexref.errors import in_gib
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.weight_source import WeightSource
from flexref.tiers.weights import WeightStore
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier

LOG = logging.getLogger(__name__)


class HeldWeights:
    """At most one store of weights. `load_s`: the seconds that went to nothing but its loading."""

    def __init__(
        self, mover: Mover, source: WeightSource, arenas: Mapping[Tier, Arena], wall: Wall, on_event: OnEvent
    ) -> None:
        self.load_s = 0.0
        self._mover, self._source, self._arenas, self._wall, self._on_event = mover, source, arenas, wall, on_event
        self._store: WeightStore | None = None
        self._begun_s = 0.0

    def under(self, plan: WeightsPlan, on_failure: Callable[[], None]) -> WeightStore:
        """The weights as planned, all of them loaded; `on_failure` is called when they cannot be had."""
        return self._under(plan, on_failure, WeightStore.load)

    @contextmanager
    def beside(self, plan: WeightsPlan, on_failure: Callable[[], None]) -> Iterator[WeightStore]:
        """As `under`, for a job that lasts as long as the context: what is not there yet loads beside it.

        It has come when the first pass has ended. If the job ends before, all is given back.
        """
        # A port that computes nothing tells how long loading takes by itself.
        how = WeightStore.begin if self._mover.backend.caps.computes else WeightStore.load
        store = self._under(plan, on_failure, how)
        try:
            yield store
        finally:
            if store.is_loading:
                self.release()

    def release(self) -> None:
        """Give all memory back."""
        if self._store is not None:
            self._store.release(self._arenas)
            self._store = None

    def _under(
        self,
        plan: WeightsPlan,
        on_failure: Callable[[], None],
        load: Callable[[WeightStore, Mapping[Tier, Arena]], None],
    ) -> WeightStore:
        store = self._store
        if store is not None and store.plan == plan:
            return store
        try:
            if store is not None and replace(store.plan, read_ahead_bytes=plan.read_ahead_bytes) == plan:
                store.restage(plan, self._arenas)
                return store
            self.release()
            self.load_s, self._begun_s = 0.0, time.perf_counter()
            self._store = store = WeightStore(plan, self._mover, self._source, self._tell, self._waiting)
            with self._waiting():
                store.allocate(self._arenas)
            load(store, self._arenas)
        except BaseException:
            self.release()
            on_failure()
            raise
        return store

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Nothing but loading is done meanwhile; what the port tells of waits for something else counts there alone."""
        before_ns = self._wall.spent_ns(WallPart.LOAD)
        try:
            with self._wall.part(WallPart.LOAD):
                yield
        finally:
            self.load_s += (self._wall.spent_ns(WallPart.LOAD) - before_ns) / NANOSECONDS

    def _tell(self, loaded_bytes: int, total_bytes: int) -> None:
        if loaded_bytes == total_bytes and self._store is not None and self._mover.backend.caps.computes:
            plan, seconds = self._store.plan, time.perf_counter() - self._begun_s
            held = ", ".join(f"{in_gib(plan.bytes_at_home(tier))} on {tier.value}" for tier in Tier)
            LOG.info("loaded weights of %s in %.2f s: %s", plan.file.path, seconds, held)
        self._on_event(WeightsLoaded(loaded_bytes, total_bytes))
