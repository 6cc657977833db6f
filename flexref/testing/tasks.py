"""Tasks and machines for tests of the planner: from a few sizes to a whole `Task`, and strategies for both."""

from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, stages, token_tiles
from flexref.machine.machine import COMPUTE, HOST_ATTENTION, RESOURCES, Machine
from flexref.machine.plain import plain_machine
from flexref.planner.program.blocks import ANYWHERE, ON_DEVICE, ON_HOST, Blocks
from flexref.planner.program.cost import Costs
from flexref.planner.program.linear import IN_PLACE, SHARES, Share
from flexref.planner.program.task import Task
from flexref.policy import Shares
from flexref.units import KINDS, LINKS, STORED_BYTES

EVERYTHING = Shares()
"""All on the device."""

SMALL = ModelSpec("small", 4096, 256, 256, 256, 4, 4, 1024)
"""Large enough for copies of some hundred KiB, small enough for numbers that are easily read."""


def plain_task(
    spec: ModelSpec = SMALL, *, stored: str = "float16", compute_dtype: str = "float32", **changes: object
) -> Task:
    """A job of prompts of 64 tokens and 16 new ones; `changes` replace fields. Two tiles make the head."""
    tile_rows = -(-spec.vocabulary // 2)
    dense = "float16" if stored == "int4" else stored

    def nbytes(stage: Stage) -> int:
        each = (STORED_BYTES[stored if tensor.quantizable else dense] * tensor.elements for tensor in stage.tensors)
        return round(sum(each))

    walk = stages(spec, tile_rows)
    tables = () if spec.tied_head else token_tiles(spec, tile_rows)
    width = {"float16": 2, "float32": 4}[compute_dtype]
    scheme = changes.get("cache_scheme", "none")
    layer_elements = sum(tensor.elements for tensor in walk[1].tensors if tensor.quantizable)
    values = {
        "spec": spec,
        "stored": stored,
        "dense": dense,
        "stage_bytes": tuple(nbytes(stage) for stage in walk),
        "stage_kinds": tuple(stage.kind for stage in walk),
        "gathered_bytes": round(sum(tensor.elements * STORED_BYTES[dense] for tensor in tables)),
        "cache_scheme": "none",
        "record_bytes": 2 * spec.width * width if scheme == "none" else round(2 * spec.width * 0.5625),
        "prompt_tokens": 64.0,
        "prompt_tokens_most": 64,
        "new_tokens": 16,
        "attention_on": "device",
        "overlap": True,
        "workspace_bytes_fixed": 1 << 16,
        "workspace_bytes_per_token": 8.0 * spec.ffn_width,
        "expanded_bytes": 0 if stored == compute_dtype else layer_elements * width,
        **changes,
    }
    return Task(**values)  # type: ignore[arg-type]


def all_shares(
    weights: Shares = EVERYTHING,
    cache: Shares = EVERYTHING,
    activations: Shares = EVERYTHING,
    host_attention_share: float = 0.0,
) -> dict[Share, float]:
    """The shares of three kinds as the planner's variables; what is not given is all on the device.

    `host_attention_share`: of the cache off the device, what attention on the host reads in place.
    """
    kinds = dict(zip(KINDS, (weights, cache, activations), strict=True))
    in_place = host_attention_share * (cache.host + cache.disk)
    return {**{(kind, tier): getattr(kinds[kind], tier) for kind, tier in SHARES}, IN_PLACE: in_place}


def block_costs(
    task: Task, machine: Machine, rows: int = 3, groups: int = 2, activations: Shares = EVERYTHING
) -> Costs:
    """The costs of one block of `groups` of `rows` each, for hidden states that wait on those tiers."""
    waiting = ANYWHERE if activations.disk else ON_HOST if activations.host else ON_DEVICE
    expanded = groups > 1 and task.expanded_bytes > 0
    return Costs(machine, task, Blocks.of([rows * groups], [groups], [rows], [expanded], [waiting]))


def moved_bytes(costs: Costs, shares: dict[Share, float], phase: str | None = None) -> dict[tuple[str, str], float]:
    """Bytes by (link, kind) that a block moves in a phase, or in both."""
    sums: dict[tuple[str, str], float] = {}
    for flow in costs.flows:
        if phase in (None, flow.phase):
            nbytes = costs.value(flow.moved_bytes(costs.blocks), shares, 0)
            sums[flow.link, flow.kind] = sums.get((flow.link, flow.kind), 0.0) + nbytes
    return {key: nbytes for key, nbytes in sums.items() if nbytes}


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Jobs on models of a few layers, with everything that a task can say."""
    heads = draw(st.sampled_from((2, 4)))
    width = heads * 64
    spec = ModelSpec(
        name="small",
        vocabulary=draw(st.sampled_from((500, 5000))),
        positions=512,
        width=width,
        embed_width=draw(st.sampled_from((width, width, 64))),
        layers=draw(st.integers(1, 5)),
        heads=heads,
        ffn_width=4 * width,
        tied_head=draw(st.booleans()),
    )
    longest = draw(st.integers(1, 200))
    return plain_task(
        spec,
        stored=draw(st.sampled_from(("float16", "float32", "int4"))),
        cache_scheme=draw(st.sampled_from(("none", "int4"))),
        prompt_tokens=draw(st.floats(1, longest)),
        prompt_tokens_most=longest,
        new_tokens=draw(st.integers(1, 40)),
        attention_on=draw(st.sampled_from(("device", "host"))),
        host_attention_share=draw(st.none() | st.none() | st.floats(0, 1)),
        overlap=draw(st.booleans()),
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines on which every link, compute unit and tier may be what limits such a task."""
    exponents = st.floats(0, 2)
    machine = plain_machine(
        link_per_s=1e8 * 10 ** draw(exponents),
        disk_per_s=1e7 * 10 ** draw(exponents),
        memory_per_s=1e9 * 10 ** draw(exponents),
        flops_per_s=1e10 * 10 ** draw(exponents),
        fixed_s=draw(st.sampled_from((1e-7, 1e-5))),
        capacity_bytes=(
            round((1 << 20) * 10 ** draw(exponents)),
            round((1 << 21) * 10 ** draw(exponents)),
            draw(st.sampled_from((0, 1 << 24, 1 << 40))),
        ),
        asynchronous=draw(st.booleans()),
    )
    factors = st.sampled_from((1.0, 1.0, 1.3, 2.0))
    slowed = (*LINKS[:2], COMPUTE, *HOST_ATTENTION.values())
    beside = {one: {other: draw(factors) for other in RESOURCES if other != one} for one in slowed}
    return machine.changed(beside=beside)
