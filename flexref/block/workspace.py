"""What visits need: operands, stored or expanded, results in the workspace, attention on the host; it knows no policy.

The visits themselves run on the port that only counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np

from flexref.architecture.program import Attend, program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind, stages
from flexref.backend.capabilities import Capabilities
from flexref.backend.protocol import Array, Backend, Lane, Matrix
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.stages import EmbedInputs, embed_visit, final_hidden
from flexref.model.weights import StageWeights, by_role
from flexref.storage.weightfile import StoredTensor, WeightFile
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Crossing, HostOperators, Region, view
from flexref.tiers.weights import WeightStore
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, LINK_OF, Kind, Tier, aligned

TO_DEVICE, TO_HOST = LINK_OF[Tier.HOST, Tier.DEVICE], LINK_OF[Tier.DEVICE, Tier.HOST]

EMBED_IDS, FED_IDS = 2, 3
"""Integers for every token that the embedding is given, its id and its position; and for one of every row in a pass."""


def array_of_its_own(be: Backend, shape: tuple[int, ...], dtype: str) -> Any:
    """An array in device memory for it alone, on a port whose memory need not exist."""
    size = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
    return be.view(be.allocate("device", size), 0, shape, dtype)


@lru_cache(maxsize=256)
def workspace_bytes(spec: ModelSpec, dtype: str, stored: str, tokens: int, rows: int, gathers: bool) -> int:
    """The most that results take in any visit: the visits themselves run on the port that only counts.

    `dtype` is the compute type, `stored` the file's; `gathers` says that token rows are gathered on the device.
    """
    dry, program = create("dry", compute_dtype=dtype), program_of(spec)
    embed, layer, *_, head = stages(spec, spec.vocabulary)

    def array(shape: tuple[int, ...], kind: str = dtype) -> Any:
        return array_of_its_own(dry, shape, kind)

    def weights(stage: Stage) -> StageWeights:
        return by_role(stage, {tensor.name: array(tensor.shape, stored) for tensor in stage.tensors})

    x = array((tokens, spec.width))
    with dry.frame():
        # Ids of a pass that is run as a whole: of one token of each row, and which of them is the row's last.
        dry.upload(np.zeros(FED_IDS * rows, np.int32))
        with dry.frame():
            ids = dry.upload(np.zeros(EMBED_IDS * tokens, np.int32))
            gathered = dry.empty if gathers else array
            # Some tiles of the table may be on the device even where the others' rows are gathered on the host.
            tables = [(0, array((spec.vocabulary, spec.embed_width), stored))]
            inputs = EmbedInputs(ids, ids, tables, gathered((tokens, spec.embed_width), stored))
            embed_visit(dry, program.embed, weights(embed), inputs, x)
        layout = RecordLayout(spec.heads, spec.head_width, dtype)
        caches = dry.cache_rows([array((tokens * layout.record_bytes,), "uint8")], layout)
        decoder_layer(dry, program.layer, weights(layer), x, LayerCache(caches, dry.segments([0], [tokens]), tokens))
        last, hidden = dry.upload(np.zeros(rows, np.int32)), array((rows, spec.embed_width))
        final_hidden(dry, program.head, weights(head), x, last, hidden)
    return max(ALIGNMENT_BYTES, aligned(dry.workspace_peak_bytes(), ALIGNMENT_BYTES))


def expandable(stage: Stage, stored: StoredTensor, compute_dtype: str) -> bool:
    """Whether it is the matrix of a product and is stored in another form than products compute in.

    The embedding's are used as they are stored: of its tables some rows are read.
    """
    is_matrix = stage.kind is not StageKind.EMBED and len(stored.shape) == 2
    return is_matrix and (stored.scheme != "none" or stored.parts[0].dtype.name != compute_dtype)


def expanded_bytes(file: WeightFile, caps: Capabilities) -> int:
    """Device bytes that the largest stage's matrices take once they are expanded."""
    return max(_stage_bytes(file, stage, caps.compute_dtype) for stage in stages(file.spec, file.tile_rows))


def _stage_bytes(file: WeightFile, stage: Stage, compute_dtype: str) -> int:
    held = (file.tensors[tensor.name] for tensor in stage.tensors)
    matrices = (stored for stored in held if expandable(stage, stored, compute_dtype))
    return sum(aligned(stored.elements * DTYPE_BYTES[compute_dtype], ALIGNMENT_BYTES) for stored in matrices)


class Expansion(Enum):
    """What becomes of matrices that are stored in another form than products compute in."""

    NEVER = 0
    """Every product reads them as they are stored."""
    PER_PASS = 1
    """A stage's are expanded once in a pass, for all groups, in a place that all stages share."""
    KEPT = 2
    """Those of stages that lie on the device are expanded once for a whole block; the others as in `PER_PASS`."""


@dataclass(frozen=True, slots=True)
class ExpandedPlan:
    """Where expanded matrices lie: `shared_bytes` for one stage at a time, and after them a place for each of `kept`.

    kept: stage -> offset in bytes. nbytes: of all of it.
    """

    shared_bytes: int
    kept: Mapping[int, int]
    nbytes: int

    @classmethod
    def of(cls, weights: WeightsPlan, caps: Capabilities, expansion: Expansion, groups: int) -> "ExpandedPlan":
        """The places for a block of so many groups.

        A single group shares a stage's matrices with nobody. Where a port reads stored codes in its products, it is
        faster than with expanded ones: there nothing is kept.
        """
        file, kept = weights.file, dict[int, int]()
        shared = expanded_bytes(file, caps) if groups > 1 and expansion is not Expansion.NEVER else 0
        end = shared
        if expansion is Expansion.KEPT and not caps.fused_rows:
            for number, plan in enumerate(weights.stages):
                nbytes = 0 if plan.streamed_bytes else _stage_bytes(file, plan.stage, caps.compute_dtype)
                if nbytes:
                    kept[number] = end
                    end += nbytes
        return cls(shared, kept, end)


class StageOperands:
    """The tensors of stages by their roles. What it gives is the same object as long as the tensors are."""

    def __init__(self, backend: Backend, store: WeightStore, places: ExpandedPlan, region: Region | None) -> None:
        """`region`: the memory that `places` are in, if there is any."""
        self._backend, self._store, self._places, self._region = backend, store, places, region
        self._stored: dict[tuple[int, int], dict[str, Matrix]] = {}
        self._kept: dict[int, dict[str, Matrix]] = {}
        self._expanded: tuple[int, dict[str, Matrix]] = (-1, {})
        self._by_role: dict[tuple[int, int], tuple[dict[str, Matrix], StageWeights]] = {}

    def weights(self, number: int, slot: int, stage_number: int, tokens: int) -> StageWeights:
        """Stage `number`, whose streamed part is in `slot`, for a product of so many tokens.

        With more than `fused_rows` tokens matrices are expanded first, if the plan has room: once for the whole block
        (`kept`), or once per pass, for all groups (`shared_bytes`): `stage_number` counts stages over all passes.
        """
        key = number, slot
        tensors = self._tensors(key, stage_number, tokens)
        known = self._by_role.get(key)
        if known is None or known[0] is not tensors:
            known = self._by_role[key] = tensors, by_role(self._stage(number), tensors)
        return known[1]

    def _tensors(self, key: tuple[int, int], stage_number: int, tokens: int) -> dict[str, Matrix]:
        number, places = key[0], self._places
        if key not in self._stored:
            self._stored[key] = self._store.operands(*key)
        stored = self._stored[key]
        if tokens <= self._backend.caps.fused_rows:
            return stored
        if number in places.kept:
            if number not in self._kept:
                self._kept[number] = self._expand(self._stage(number), stored, places.kept[number])
            return self._kept[number]
        if not places.shared_bytes:
            return stored
        if self._expanded[0] != stage_number:
            self._expanded = stage_number, self._expand(self._stage(number), stored, 0)
        return self._expanded[1]

    def _stage(self, number: int) -> Stage:
        return self._store.plan.stages[number].stage

    def _expand(self, stage: Stage, stored: dict[str, Matrix], offset: int) -> dict[str, Matrix]:
        """The stage's tensors, with its matrices expanded into the memory from `offset` on."""
        assert self._region is not None
        expanded, file = dict(stored), self._store.plan.file
        dtype = self._backend.caps.compute_dtype
        for tensor in stage.tensors:
            if expandable(stage, file.tensors[tensor.name], dtype):
                out = view(self._backend, self._region, tensor.shape, dtype, offset)
                expanded[tensor.name] = self._backend.expand(stored[tensor.name], out)  # type: ignore[arg-type]
                offset += aligned(tensor.elements * DTYPE_BYTES[dtype], ALIGNMENT_BYTES)
        return expanded


class HostAttention:
    """Attention for the rows of a visit that are away: beside their caches, on a lane of its own.

    Visits go one after another on that lane, and operators wait for it in each: so one place on the host serves all.
    """

    def __init__(self, mover: Mover, step: Attend, region: Region, one_by_one: bool) -> None:
        """`region` has room on the host for what comes and goes. `one_by_one`: nothing else goes on meanwhile."""
        self._mover, self._step, self._region, self._one_by_one = mover, step, region, one_by_one

    def begin(self, rows: Any, segments: Any, qkv: Array, context: Array) -> Callable[[], None]:
        """qkv (T, 3E) is copied to the host, and attention to the caches of `rows` begins there, for context (T, E).

        What this gives is called before context is read: operators wait for the lane, and the result is copied back.
        """
        be, mover, step = self._mover.backend, self._mover, self._step
        dtype, (tokens, inputs), width = be.caps.compute_dtype, qkv.shape, step.width
        there = self._region.part(0, tokens * inputs * DTYPE_BYTES[dtype])
        back = self._region.part(there.nbytes, tokens * width * DTYPE_BYTES[dtype])
        host_qkv: Any = view(be, there, (tokens, inputs), dtype)
        host_context: Any = view(be, back, (tokens, width), dtype)
        mover.carry(Crossing(Kind.ACTIVATIONS, "queries, keys, values", there.nbytes, TO_HOST), qkv, host_qkv)
        queries, keys, values = (host_qkv[:, first : first + width] for first in (0, width, 2 * width))

        def attend() -> None:
            be.append(rows, segments, keys, values)
            be.attend(rows, segments, queries, step.scale, host_context)

        ticket = mover.submit(Lane.HOST_COMPUTE, [HostOperators("attention on the host", attend)], [be.mark()])
        if self._one_by_one:
            ticket.wait()

        def end() -> None:
            be.wait(ticket)
            mover.carry(Crossing(Kind.ACTIVATIONS, "attention", back.nbytes, TO_DEVICE), host_context, context)

        return end
