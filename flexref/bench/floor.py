"""The least time that a job could take: its bytes over what each link carries, its FLOPs over what products reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind, stages
from flexref.bench.rates import Rates
from flexref.bench.workload import Workload
from flexref.block.admission import WINDOWS
from flexref.block.block_rows import BlockRows
from flexref.block.counted_rows import rows_under
from flexref.block.memory_plan import record_layout
from flexref.block.rooms import BlockRooms
from flexref.engine.results import Stats
from flexref.json_types.values import Number, OneOf
from flexref.policy import Policy
from flexref.simulator.simulated_block import waiting_rows
from flexref.storage.weightfile import WeightFile
from flexref.tiers.cache_plan import CachePlan
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier

RATES: Mapping[str, str] = MappingProxyType(
    {
        "host->device": "to_device_bytes_per_s",
        "device->host": "from_device_bytes_per_s",
        "weight file": "from_disk_bytes_per_s",
        "disk->host": "from_spill_bytes_per_s",
        "host->disk": "to_spill_bytes_per_s",
        "products": "product_flops_per_s",
        "device memory": "device_memory_bytes_per_s",
        "host memory": "host_memory_bytes_per_s",
    }
)
"""The field of `Rates` that each term of a floor is computed from."""


@dataclass(frozen=True, slots=True)
class PhaseFloor:
    """The least seconds of one phase by what they are needed for; the phase takes at least the greatest of them."""

    terms_s: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """The floor."""
        return max(self.terms_s.values())

    @property
    def limit(self) -> str:
        """What the floor is set by."""
        return max(self.terms_s, key=lambda term: self.terms_s[term])


@dataclass(frozen=True, slots=True)
class BeatenFloor:
    """A phase took fewer seconds than its term `term` would have it, so the rate that this is computed from is wrong.

    `seconds`: of the fastest run. `rate`: the field of `Rates`, `measured` per second; the run shows that it is at
    least `shown`.
    """

    phase: Annotated[str, "prefill, decode, or prefill and decode where rows differ."]
    term: Annotated[str, OneOf(tuple(RATES)), "What the floor was computed from."]
    seconds: Annotated[float, Number(0), "Seconds of the fastest run."]
    floor_s: Annotated[float, Number(0), "The least seconds that the term would have allowed."]
    rate: Annotated[str, OneOf(tuple(RATES.values())), "The rate among rates that is too low."]
    measured: Annotated[float, Number(0), "That rate, as it was measured."]
    shown: Annotated[float, Number(0), "What the rate must be at least, by this run."]


def beaten_floors(phase: str, floor: PhaseFloor, seconds: float, rates: Rates) -> list[BeatenFloor]:
    """Every term of `floor` that a run of a phase was faster than: none, if the floor is one."""
    found = []
    for term, term_s in floor.terms_s.items():
        if seconds < term_s:
            rate: float = getattr(rates, RATES[term])
            found.append(BeatenFloor(phase, term, seconds, term_s, RATES[term], rate, rate * term_s / seconds))
    return found


def floors(
    file: WeightFile, workload: Workload, stats: Stats, rates: Rates, compute_dtype: str
) -> tuple[PhaseFloor, PhaseFloor]:
    """The floors of (prefill, decode) of the job that `stats` is the account of, on a machine of these rates: of rows
    that are alike, so that all prompts of a block are read in its first pass.

    Bytes over links are those that the placement moved. Device memory is read once per pass and block for the weights
    as they are stored, and once per decode pass for the cache records that are attended to there; host memory for those
    that attention on the host reads in place.
    """
    assert workload.row is not None
    rounds = workload.rounds(stats.policy.rows_per_block)
    passes = (rounds, rounds * (workload.row.new_tokens - 1))
    there, in_place = cache_bytes_attended(file.spec, stats.policy, workload, compute_dtype)
    weights = weight_bytes_read(file)
    memory = ((passes[0] * weights, 0.0), (passes[1] * weights + there, in_place))
    links = (prefill_link_bytes(file, stats, rounds), decode_link_bytes(stats))
    phases = zip(links, workload.flops(file.spec), memory, strict=True)
    prefill, decode = (_phase(moved, flops, read, rates) for moved, flops, read in phases)
    return prefill, decode


def whole_floors(
    file: WeightFile, workload: Workload, stats: Stats, rates: Rates, compute_dtype: str
) -> tuple[PhaseFloor]:
    """The one floor of a whole job in whose passes some rows' prompts are read while others decode; see `floors`.

    Weights are read from device memory once per pass: there are at least as many as a block that is always full takes.
    """
    passes = workload.least_passes(stats.policy.rows_per_block)
    there, in_place = cache_bytes_attended(file.spec, stats.policy, workload, compute_dtype)
    memory = passes * weight_bytes_read(file) + there, in_place
    return (_phase(stats.link_bytes, sum(workload.flops(file.spec)), memory, rates),)


def prefill_link_bytes(file: WeightFile, stats: Stats, passes: int) -> dict[str, dict[str, int]]:
    """Bytes per link and kind that a prefill of so many passes needed.

    What is read ahead from disk for the passes after it has been started by its end, too, and is none of it.
    """
    plan = WeightsPlan.under(file, stats.policy)
    own = passes * sum(run.nbytes for stage in plan.stages for run in stage.homes[Tier.DISK].runs)
    moved = {link: dict(kinds) for link, kinds in stats.prefill_link_bytes.items()}
    from_disk = moved.get("disk->host", {})
    if "weights" in from_disk:
        from_disk["weights"] = min(from_disk["weights"], own)
    return moved


def decode_link_bytes(stats: Stats) -> dict[str, dict[str, int]]:
    """Bytes per link and kind of which the moving began after the prefill: at least those were moved then."""
    return {
        link: {kind: nbytes - stats.prefill_link_bytes.get(link, {}).get(kind, 0) for kind, nbytes in kinds.items()}
        for link, kinds in stats.link_bytes.items()
    }


def weight_bytes_read(file: WeightFile) -> int:
    """Bytes of the weights that every pass needs whole: all layers and the head, as they are stored.

    Of the tables of tokens and positions a pass reads some rows.
    """
    walk = [stage for stage in stages(file.spec, file.tile_rows) if stage.kind is not StageKind.EMBED]
    return sum(file.tensors[tensor.name].nbytes for stage in walk for tensor in stage.tensors)


def cache_bytes_read(spec: ModelSpec, policy: Policy, workload: Workload, compute_dtype: str) -> float:
    """Bytes of cache records that all decode passes together attend to, those of the same pass left out."""
    return spec.layers * workload.past_tokens() * record_layout(spec, policy, compute_dtype).record_bytes


def cache_bytes_attended(
    spec: ModelSpec, policy: Policy, workload: Workload, compute_dtype: str
) -> tuple[float, float]:
    """The parts of `cache_bytes_read` that are attended to on the device, and on the host: by whole rows, as they go
    through the block."""
    whole, in_place = cache_bytes_read(spec, policy, workload, compute_dtype), 0
    if policy.shares_attention:
        layout = record_layout(spec, policy, compute_dtype)
        groups = BlockRooms.of(rows_under(workload.rows, policy), policy).groups
        waiting = waiting_rows(workload.rows, WINDOWS * policy.rows_per_block)
        rows = BlockRows(CachePlan(layout, spec.layers, groups, 1), waiting, policy.prompt_chunk_tokens)
        while rows.alive():
            for group in rows.groups:
                decoding = (of for row, of in zip(group.fed, group.in_pass, strict=True) if not row.is_reading)
                in_place += sum(of_row.past for of_row in decoding if of_row.is_away)
            rows.skip_pass()
        in_place *= spec.layers * layout.record_bytes
    return whole - in_place, in_place


def _phase(
    link_bytes: Mapping[str, Mapping[str, int]], flops: int, memory_bytes: tuple[float, float], rates: Rates
) -> PhaseFloor:
    """What each link, the products and memory (of the device, of the host) need; what has no measured rate was not
    used."""
    sums = {link: sum(kinds.values()) for link, kinds in link_bytes.items()}
    weights_read = link_bytes.get("disk->host", {}).get("weights", 0)
    device_bytes, host_bytes = memory_bytes
    moved = {
        "host->device": sums.get("host->device", 0),
        "device->host": sums.get("device->host", 0),
        "weight file": weights_read,
        "disk->host": sums.get("disk->host", 0) - weights_read,
        "host->disk": sums.get("host->disk", 0),
        "host memory": host_bytes,
    }
    of_links = {term: nbytes for term, nbytes in moved.items() if nbytes and getattr(rates, RATES[term]) is not None}
    amounts = {**of_links, "products": flops, "device memory": device_bytes}
    return PhaseFloor({term: amount / getattr(rates, RATES[term]) for term, amount in amounts.items()})
