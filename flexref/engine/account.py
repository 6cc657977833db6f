"""A job under way: its blocks, its weights, and what it has taken so far; it knows no token and no text."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from flexref.block.budgets import totals
from flexref.block.memory_plan import BlockPlan
from flexref.block.rows import Fed
from flexref.block.state import BlockState
from flexref.block.tracing.trace import Trace
from flexref.engine.results import Stats
from flexref.engine.wall import NANOSECONDS, Wall, WallPart
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Flow
from flexref.tiers.weights import WeightStore
from flexref.units import LINK_OF, Tier


@dataclass(slots=True)
class Standing:
    """How far a job has come: its figures, and the live rows and places of its latest pass."""

    stats: Stats
    live_rows: int = 0
    places: int = 0


@dataclass(slots=True)
class Account:
    """What a job needs of its session while it runs. `stats` is complete when the job has ended."""

    standing: Standing
    weights: WeightStore
    arenas: Mapping[Tier, Arena]
    wall: Wall
    trace: Trace | None = None
    _memory: list[BlockPlan] = field(default_factory=list)
    _waited_ns: dict[WallPart, int] = field(default_factory=dict)
    _reads_disk: bool = field(init=False)
    """Whether passes read weights from disk."""

    def __post_init__(self) -> None:
        self._reads_disk = self.weights.plan.bytes_at_home(Tier.DISK) > 0

    @property
    def stats(self) -> Stats:
        """The figures of the job."""
        return self.standing.stats

    def check_weights(self) -> None:
        """`StorageError` if weights that are read again in every pass are not those of the pass before."""
        if self._reads_disk:
            self.weights.source.check_unchanged()

    @contextmanager
    def memory_of(self, block: BlockState, rest: WallPart = WallPart.DECODE) -> Iterator[None]:
        """Take all that a block needs and give it back; the seconds of both are `allocate_s`.

        Its passes run meanwhile; what comes after the last of them is counted in the whole time's part `rest`.
        """
        self._memory.append(block.plan)
        if self.trace is not None:
            self.trace.begin_block()
        try:
            if self.weights.is_loading:
                self.weights.give_way(self.arenas, totals(block.plan.needs())[Tier.HOST])
            start = time.perf_counter()
            with self.wall.part(WallPart.ALLOCATE):
                if self.weights.plan != block.planned.weights:  # it reads less far ahead than blocks before it
                    self.weights.restage(block.planned.weights, self.arenas)
                block.allocate(self.arenas)
            self.stats.allocate_s += time.perf_counter() - start
            self.tell_held()
            self._waits_s()
            with self.wall.passes(rest):
                yield
        finally:
            start = time.perf_counter()
            with self.wall.part(WallPart.ALLOCATE):
                block.release()
            self.stats.allocate_s += time.perf_counter() - start
            self.tell_held()
            self.stats.blocks += 1
            self.stats.rows_admitted += block.rows.admission.admitted
            self.stats.rows_retired += block.rows.admission.retired
            self.stats.shared_prefix_tokens += block.rows.admission.spared_tokens

    def count_pass(self, fed: Fed, places: int, seconds: float) -> None:
        """A pass has ended that had `fed`, in a block of so many places, and took so many seconds, those in which it
        waited for weights that still loaded among them, which are `load_s`, and for memory that was still to be pinned,
        which are `allocate_s`.
        """
        stats = self.stats
        loading_s, pinning_s = self._waits_s()
        stats.allocate_s += pinning_s
        seconds = max(0.0, seconds - loading_s - pinning_s)
        stats.prompt_tokens += fed.prompt_tokens
        if fed.generated_tokens:
            stats.decode_s += seconds
        else:
            stats.prefill_s += seconds
        self.wall.end_pass(WallPart.DECODE if fed.generated_tokens else WallPart.PREFILL)
        stats.occupancy.add(fed.rows / places)
        self.standing.live_rows, self.standing.places = fed.rows, places
        if fed.spared_tokens:
            cache = self._memory[-1].cache
            stats.shared_prefix_link_bytes += fed.spared_tokens * cache.layout.record_bytes * cache.prefix_layers

    def _waits_s(self) -> tuple[float, float]:
        """Seconds in which weights, and memory, have been waited for since this was asked last."""
        before = self._waited_ns
        self._waited_ns = {part: self.wall.spent_ns(part) for part in (WallPart.LOAD, WallPart.ALLOCATE)}
        load, allocate = ((count - before.get(part, 0)) / NANOSECONDS for part, count in self._waited_ns.items())
        return load, allocate

    def tell_held(self) -> None:
        """Tell the trace what is held now."""
        if self.trace is not None:
            self.trace.on_held(time.perf_counter(), self.arenas)

    def close(self, flows: Mapping[tuple[str, str], Flow]) -> None:
        """Write into `stats` what moved, what was held at most, and the bytes and shares of each kind on each tier."""
        stats = self.stats
        stats.link_bytes = {link: {} for link in LINK_OF.values()}
        stats.link_s = {link: {} for link in LINK_OF.values()}
        for (link, kind), flow in sorted(flows.items()):
            stats.link_bytes[link][kind] = flow.nbytes
            stats.link_s[link][kind] = flow.seconds
        stats.spilled_bytes = sum(flow.written_bytes for flow in flows.values())
        for link, kinds in stats.prefill_link_bytes.items():  # what was begun in it and never read belongs to none
            kinds.update({kind: min(nbytes, stats.link_bytes[link].get(kind, 0)) for kind, nbytes in kinds.items()})
        stats.peak_bytes = {tier.value: arena.peak_bytes for tier, arena in self.arenas.items()}
        largest = max(self._memory, key=lambda memory: sum(totals(memory.needs()).values()))
        held = {
            "weights": {tier.value: self.weights.plan.bytes_at_home(tier) for tier in Tier},
            "cache": {tier.value: largest.cache.layers * largest.cache.layer_bytes(tier) for tier in Tier},
            "activations": {tier.value: largest.activations.bytes_at_home(tier) for tier in Tier},
        }
        stats.tier_bytes = held
        policy = stats.policy
        planned = {"weights": policy.weights, "cache": policy.cache, "activations": policy.activations}
        for kind, tiers in held.items():
            total = sum(tiers.values())
            stats.placement[kind] = {
                "planned": asdict(planned[kind]),
                "real": {tier: nbytes / total if total else 0.0 for tier, nbytes in tiers.items()},
            }


def add_bytes(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    """Add bytes per link and kind to a table of them."""
    for link, kinds in more.items():
        for kind, nbytes in kinds.items():
            total.setdefault(link, {})[kind] = total.get(link, {}).get(kind, 0) + nbytes
