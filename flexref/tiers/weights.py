"""A model's weights over the tiers: loads them once, streams stages, and gives out operands; it computes nothing."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role, TensorKind
from flexref.architecture.stages import tensor_name
from flexref.backend.protocol import Array, Backend, Matrix, QuantizedMatrix
from flexref.errors import CapacityError, in_gib
from flexref.storage.weightfile import StoredTensor
from flexref.tiers.disk import CHUNK_BYTES
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.table_reads import TableRead
from flexref.tiers.transfer import Copy, Region, host_bytes, view
from flexref.tiers.weight_loading import BESIDE, Loading, places_in
from flexref.tiers.weight_reads import WholeRun
from flexref.tiers.weight_source import WeightSource, check_homes
from flexref.tiers.weights_plan import LOADING, LOADING_PLACES, STAGING, Run, WeightsPlan
from flexref.units import ALIGNMENT_BYTES, Kind, Tier, aligned

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Located:
    """Where a tensor's bytes are: `region` holds the file's bytes from offset `base` on."""

    region: Region
    base: int


@dataclass(slots=True)
class WeightStore:
    """The weights in their homes and slots: takes memory, loads once, streams stage by stage, gives out operands.

    While they load beside all else (`begin`), whoever needs a stage's weights asks for them with `ready`.
    """

    plan: WeightsPlan
    mover: Mover
    source: WeightSource
    on_loaded: Callable[[int, int], None] | None = None
    """Told of how many bytes have been read so far, and how many are read before the first pass is over."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes a context for every stretch of time that goes to loading, and to nothing else."""
    _homes: dict[str, Located] = field(default_factory=dict)
    _host: dict[int, Region] = field(default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)
    _slots: list[Region] = field(default_factory=list)
    _staging: list[Region] = field(default_factory=list)
    _row_checksums: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict)
    """Of tables whose rows are read from disk one by one: 8 bytes for every row, which no budget counts."""
    _counted_bytes: int = 0
    _loading: Loading | None = None

    @property
    def backend(self) -> Backend:
        """The port that holds the memory."""
        return self.mover.backend

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take all memory that the plan names; `CapacityError` before anything is read. See `check_homes`."""
        plan = self.plan
        check_homes(plan, self.source)
        for tier in (Tier.DEVICE, Tier.HOST):
            if plan.bytes_at_home(tier):
                self._assign_homes(tier, self._take(arenas[tier], "weights", plan.bytes_at_home(tier)))
        arenas[Tier.DISK].count("weights", plan.bytes_at_home(Tier.DISK))  # they lie in the file already
        self._counted_bytes = plan.bytes_at_home(Tier.DISK)
        if plan.slot_bytes:
            slots = self._take(arenas[Tier.DEVICE], "weight slots", plan.slots * plan.slot_bytes)
            self._slots = [slots.part(slot * plan.slot_bytes, plan.slot_bytes) for slot in range(plan.slots)]
        self._take_staging(plan, arenas)

    def restage(self, plan: WeightsPlan, arenas: Mapping[Tier, Arena]) -> None:
        """Go on with another plan, that differs in how far it reads ahead; nothing is loaded anew.

        After a `CapacityError` there is no place for what comes from disk, and the store has a plan that nobody asks
        for: it can be restaged once more, or released.
        """
        self.plan, self._staging = replace(plan, read_ahead_bytes=-1), []
        self._give_back(STAGING)
        self._take_staging(plan, arenas)
        self.plan = plan

    def _give_back(self, holder: str) -> None:
        """Give back what is taken by that name."""
        for held in [held for held in self._taken if held[1] == holder]:
            self._taken.remove(held)
            held[0].give_back(held[1], held[2])

    def _take_staging(self, plan: WeightsPlan, arenas: Mapping[Tier, Arena]) -> None:
        size, slots = plan.staging_slot_bytes, plan.staging_slots
        if size:
            staging = self._take(arenas[Tier.HOST], STAGING, slots * size)
            self._staging = [staging.part(slot * size, size) for slot in range(slots)]

    @property
    def is_loading(self) -> bool:
        """Whether weights load beside all else: such a store can be released, or its stages be waited for."""
        return self._loading is not None

    def load(self, arenas: Mapping[Tier, Arena]) -> None:
        """Read what has its home on device or host; read, too, what stays on disk but is gathered row by row, since
        the file has no checksum for a row.

        Raises `WeightFileError` with the dataset's name if a checksum differs, and goes on differing (`WeightSource`).
        """
        with self.waiting():
            if self._staging and not self.plan.loading_bytes:
                self._load_through(
                    [place for slot in self._staging for place in places_in(slot, CHUNK_BYTES)][:LOADING_PLACES]
                )
                return
            room = arenas[Tier.HOST].take(LOADING, self.plan.loading_bytes)
            try:
                self._load_through(places_in(room, room.nbytes // LOADING_PLACES))
            finally:
                arenas[Tier.HOST].give_back(LOADING, room)

    def _load_through(self, places: Sequence[Region]) -> None:
        loading = Loading(self.plan, self.mover, self.source, self._homes, places, self.on_loaded)
        loading.finish()
        self._row_checksums.update(loading.row_checksums)

    def begin(self, arenas: Mapping[Tier, Arena]) -> None:
        """Begin to load what `load` does, beside all that comes until the first pass is over (`ready`).

        For what passes through the host it needs places of its own meanwhile: where the host has no room for them, it
        loads all at once.
        """
        nbytes = self.plan.loading_beside_bytes
        try:
            with self.waiting():
                room = self._take(arenas[Tier.HOST], LOADING, nbytes)
        except CapacityError:
            LOG.info("weights load before all else: the host has no room for %s beside them", in_gib(nbytes))
            self.load(arenas)
            return
        with self.waiting():
            places = places_in(room, room.nbytes // LOADING_PLACES)
            mover = self.mover.beside()
            self._loading = Loading(self.plan, mover, self.source, self._homes, places, self.on_loaded, BESIDE)
            self._loading.go_on()

    def ready(self, stage: int | None = None) -> None:
        """Wait until all weights have come that a pass needs up to a stage, that one's among them, or up to its end;
        raises what `load` does.
        """
        loading = self._loading
        if loading is None:
            return
        with self.waiting():
            loading.go_on()
            loading.await_stage(len(self.plan.stages) - 1 if stage is None else stage)
            self._row_checksums.update(loading.row_checksums)
            if loading.is_over:
                self._loading = None
                self._give_back(LOADING)

    def give_way(self, arenas: Mapping[Tier, Arena], nbytes: int) -> None:
        """Wait for all weights if the host has no room for `nbytes` beside the places that they pass through."""
        if self._loading is not None and not arenas[Tier.HOST].has_room(nbytes):
            LOG.info("weights load before the first pass: the host has no room for what that takes beside it")
            self.ready()

    def fetch(self, stage: int, slot: int) -> list[Copy]:
        """disk -> host: the stage's part whose home is the disk, to a staging slot; it is checked every time."""
        plan, copies = self.plan.stages[stage], []
        for offset, run in plan.homes[Tier.DISK].offsets():
            source = Region(Tier.DISK, WholeRun(self.source, run), run.file_offset, run.nbytes)
            target = self._staging[slot].part(offset, run.nbytes)
            copies.append(Copy(Kind.WEIGHTS, f"{plan.stage.name} weights", source, target))
        return copies

    def load_slot(self, stage: int, slot: int, staged: int) -> list[Copy]:
        """host -> device: the stage's streamed parts, one copy for those whose home is the host, one for the disk's.

        `staged`: the staging slot to which the disk's were fetched.
        """
        plan, copies = self.plan.stages[stage], []
        what = f"{plan.stage.name} weights"
        from_host, from_disk = plan.homes[Tier.HOST].nbytes, plan.homes[Tier.DISK].nbytes
        if from_host:
            target = self._slots[slot].part(0, from_host)
            copies.append(Copy(Kind.WEIGHTS, what, self._host[stage], target))
        if from_disk:
            target = self._slots[slot].part(from_host, from_disk)
            copies.append(Copy(Kind.WEIGHTS, what, self._staging[staged].part(0, from_disk), target))
        return copies

    def operands(self, stage: int, slot: int) -> dict[str, Matrix]:
        """Every tensor of the stage on the device, by its name."""
        plan = self.plan.stages[stage]
        found: dict[str, Matrix] = {}
        for run in plan.homes[Tier.DEVICE].runs:
            for tensor in run.tensors:
                found[tensor.name] = operand(self.backend, tensor, self._homes[tensor.name])
        start = 0
        for tier in (Tier.HOST, Tier.DISK):
            for offset, run in plan.homes[tier].offsets():
                located = Located(self._slots[slot].part(start + offset, run.nbytes), run.file_offset)
                for tensor in run.tensors:
                    found[tensor.name] = operand(self.backend, tensor, located)
            start += plan.homes[tier].nbytes
        return found

    def device_table(self, name: str) -> Array | None:
        """A tile of the token table, if its home is the device."""
        located = self._homes.get(name)
        if located is None or located.region.tier is not Tier.DEVICE:
            return None
        return operand(self.backend, self.plan.file.tensors[name], located)  # type: ignore[return-value]

    def table_reads(self, token_ids: npt.NDArray[np.int32], first_rows: Sequence[int]) -> list[TableRead]:
        """What to read for tokens whose rows are not on the device; token_ids (T,), tiles start at `first_rows`."""
        file = self.plan.file
        tile_of = np.searchsorted(np.asarray(first_rows), token_ids, side="right") - 1
        reads = []
        for tile in np.unique(tile_of).tolist():
            name = tensor_name(Role.TOKENS, TensorKind.TABLE, tile)
            located = self._homes.get(name)
            if located is not None and located.region.tier is Tier.DEVICE:
                continue
            tokens = np.flatnonzero(tile_of == tile)
            rows = token_ids[tokens].astype(np.int64) - first_rows[tile]
            reads.append(TableRead(file.tensors[name], tokens, rows, from_disk=located is None))
        return reads

    def read_table_rows(self, read: TableRead) -> npt.NDArray[np.uint8]:
        """(R, row bytes): the rows that `read` names, from host or disk."""
        part = read.tensor.parts[0]
        row_bytes = part.extent.nbytes // read.tensor.shape[0]
        located = self._homes.get(read.tensor.name)
        if located is None:
            into = np.empty((len(read.rows), row_bytes), np.uint8)
            known = self._row_checksums.get(read.tensor.name)
            checksums = None if known is None else known[read.rows]
            self.source.read_rows(part.extent.offset + read.rows * row_bytes, into, checksums)
            return into
        start = part.extent.offset - located.base
        table = host_bytes(self.backend, located.region)[start : start + part.extent.nbytes]
        return table.reshape(-1, row_bytes)[read.rows]  # type: ignore[no-any-return]

    def release(self, arenas: Mapping[Tier, Arena]) -> None:
        """Give all memory back; what loads just now is not waited for longer than until no lane is at it."""
        if self._loading is not None:
            self._loading.stop()
            self._loading = None
        arenas[Tier.DISK].count("weights", -self._counted_bytes)
        self._counted_bytes = 0
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()

    def _take(self, arena: Arena, holder: str, nbytes: int) -> Region:
        region = arena.take(holder, nbytes)
        self._taken.append((arena, holder, region))
        self.mover.check()
        return region

    def _assign_homes(self, tier: Tier, region: Region) -> None:
        start = 0
        for stage, plan in enumerate(self.plan.stages):
            layout = plan.homes[tier]
            if tier is Tier.HOST:
                self._host[stage] = region.part(start, layout.nbytes)
            for offset, run in layout.offsets():
                part = region.part(start + offset, aligned(run.nbytes, ALIGNMENT_BYTES))
                for tensor in run.tensors:
                    self._homes[tensor.name] = Located(part, run.file_offset)
            start += layout.nbytes
        for tensor, home in self.plan.gathered:
            if home is tier:
                size = aligned(tensor.nbytes, ALIGNMENT_BYTES)
                self._homes[tensor.name] = Located(region.part(start, size), Run.of([tensor]).file_offset)
                start += size


def operand(backend: Backend, tensor: StoredTensor, located: Located) -> Matrix:
    """The tensor as what operators take: an array, or codes with their scales and zeros."""
    arrays = [
        view(backend, located.region, part.shape, part.dtype.name, part.extent.offset - located.base)
        for part in tensor.parts
    ]
    if tensor.scheme == "none":
        return arrays[0]  # type: ignore[return-value]
    codes, scale, zero = arrays
    assert tensor.group_size is not None
    assert tensor.bits is not None
    return QuantizedMatrix(codes, scale, zero, tensor.shape[1], tensor.group_size, tensor.bits)  # type: ignore[arg-type]
