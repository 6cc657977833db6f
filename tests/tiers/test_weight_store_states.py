"""A weight store beside the file's own bytes: loaded, streamed, damaged, mended, interrupted and released at random."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind, token_tiles
from flexref.backend.protocol import Lane, QuantizedMatrix
from flexref.check.models import write_model
from flexref.errors import CapacityError, StorageError, WeightFileError
from flexref.policy import Shares
from flexref.storage.checks import PartChecker
from flexref.storage.weightfile import StoredTensor, WeightFile, open_weight_file
from flexref.tiers import table_reads as table_module
from flexref.tiers import weight_loading as loading_module
from flexref.tiers import weights as weights_module
from flexref.tiers import weights_plan as plan_module
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.faults import FaultLog
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Traffic, host_bytes
from flexref.tiers.weight_copies import WeightCopies
from flexref.tiers.weight_reads import RunInPieces
from flexref.tiers.weights import WeightStore, operand
from flexref.tiers.weights_plan import Run, WeightsPlan
from flexref.units import Tier, aligned

PAGE = 4096
NAMES = ("tied", "untied", "int4")
SPECS = {
    "tied": (ModelSpec("tied", 150, 6, 12, 10, 2, 3, 20), "none", "float32"),
    "untied": (ModelSpec("untied", 150, 6, 12, 12, 2, 3, 20, tied_head=False), "none", "float16"),
    "int4": (ModelSpec("int4", 90, 6, 12, 10, 1, 3, 20), "int4", "float16"),
}
SHARES = st.sampled_from([(1, 0), (0, 1), (0, 0), (0.3, 0.3), (0.5, 0), (0, 0.5), (0.5, 0.5)])


class DamagedDisk(WeightsOnDisk):
    """Some bytes come back changed, always or once, and a read may fail."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.damage: dict[int, int] = {}
        self.flips: dict[int, int] = {}
        self.flipped: set[int] = set()
        self.reads_left = -1
        """Before one fails; below 0: none does."""
        self.failed = False

    def begin(self, reads_left: int) -> None:
        self.failed, self.reads_left = False, reads_left
        self.flipped.clear()

    def _serve(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        for place, change in self.damage.items():
            if offset <= place < offset + into.nbytes:
                into[place - offset] ^= change
        for place in [place for place in self.flips if offset <= place < offset + into.nbytes]:
            into[place - offset] ^= self.flips.pop(place)
            self.flipped.add(place)

    def _fail(self) -> None:
        self.reads_left -= 1
        if self.reads_left == -1:
            self.failed = True
            raise StorageError("the disk fails")

    def read(self, offset: int, into: npt.NDArray[np.uint8], arrived: Any = None) -> None:
        self._fail()
        super().read(offset, into)
        self._serve(offset, into)
        if arrived is not None:
            arrived(into)

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        self._fail()
        super().read_rows(offsets, into)
        for number, offset in enumerate(offsets.tolist()):
            self._serve(offset, into[number])


class WeightStoreStates(RuleBasedStateMachine):
    """One store after the other on each of some files; slots are filled with any stage, in any order.

    Where there is a mirror, or what failed is tried again, nothing may show but the file's own bytes.
    """

    paths: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # So that a run is loaded in many pieces, and some slots are too small for it.
        self.patch.setattr(plan_module, "CHUNK_BYTES", 2 * PAGE)
        self.patch.setattr(plan_module, "LOADING_PIECES", 2)
        self.patch.setattr(weights_module, "CHUNK_BYTES", PAGE)
        self.patch.setattr(table_module, "PIECE_BYTES", 64)
        self.port = NumpyBackend(1 << 16)
        self.checks_left = -1
        self.mover = Mover(self.port, Traffic(), self.check)
        self.files: dict[str, tuple[WeightFile, DamagedDisk, WeightsOnDisk, bytes]] = {}
        self.store: WeightStore | None = None

    def check(self) -> None:
        self.checks_left -= 1
        if self.checks_left == -1:
            raise KeyboardInterrupt

    # What is known

    def damaged(self, runs: list[Run], failed: bool = False) -> list[str]:
        """The datasets of some runs that cannot be had as they are in the file.

        Where a read has `failed`, so that its try was used up, what came changed once may have come too often.
        """
        if self.mirrored:
            return []
        parts = [part for run in runs for tensor in run.tensors for part in tensor.parts]
        places = {*self.disk.damage, *(() if self.waits and not failed else self.disk.flipped)}
        return [
            part.dataset for part in parts if any(part.extent.offset <= place < part.extent.stop for place in places)
        ]

    @property
    def fails(self) -> bool:
        """Whether a read has failed, and nobody tries again."""
        return self.disk.failed and not self.waits and not self.mirrored

    def checked_by_loading(self) -> Iterator[Run]:
        """All that has a home in memory, and what is gathered row by row from the disk."""
        for plan in self.plan.stages:
            tied_head = plan.stage.kind is StageKind.HEAD and self.file.spec.tied_head
            for tier in Tier:
                if tier is not Tier.DISK or tied_head:
                    yield from plan.homes[tier].runs
        yield from (Run.of([tensor]) for tensor, _ in self.plan.gathered)

    # Rules

    @precondition(lambda self: self.store is None)
    @rule(
        name=st.sampled_from(NAMES),
        shares=SHARES,
        places=st.tuples(st.integers(1, 2), st.sampled_from([0, 0, 3 * PAGE, 40 * PAGE])),
        short=st.sampled_from([None, None, None, *Tier]),
        breaks=st.sampled_from([None, None, "disk", "Ctrl-C", "a byte"]),
        after=st.integers(0, 12),
        tries=st.sampled_from(["once", "again", "mirror"]),
        beside=st.none() | st.lists(st.integers(0, 9), max_size=4),
    )
    def load(  # noqa: PLR0913, PLR0917 - all that a loading may meet
        self,
        name: str,
        shares: tuple[float, float],
        places: tuple[int, int],
        short: Tier | None,
        breaks: str | None,
        after: int,
        tries: str,
        beside: list[int] | None,
    ) -> None:
        source = self.opened(name, tries)
        if breaks == "a byte":
            self.disk.damage[list(self.file.parts)[after].extent.offset] = 1
        self.plan = WeightsPlan.of(self.file, Shares.of(*shares), *places)
        needs: Counter[Tier] = Counter()
        for tier, _, nbytes in self.plan.needs():
            needs[tier] += aligned(nbytes, PAGE)
        budgets = {tier: needs[tier] for tier in Tier}
        budgets[Tier.HOST] += aligned(self.plan.loading_bytes, PAGE)
        if short is not None and budgets[short]:
            budgets[short] -= 1
        self.arenas = {tier: self.arena(tier, budget) for tier, budget in budgets.items()}
        self.loaded_bytes = self.loading_bytes = 0
        store = WeightStore(self.plan, self.mover, source, self.count_loaded)
        self.disk.begin(after if breaks == "disk" else -1)
        self.checks_left = after if breaks == "Ctrl-C" else -1
        try:
            store.allocate(self.arenas)
            assert all(self.arenas[tier].held_bytes == needs[tier] for tier in Tier)
            self.load_all(store, beside)
        except BaseException as error:
            self.is_expected(error, short)
            store.release(self.arenas)
            self.nothing_is_held()
            return
        finally:
            interrupted, self.checks_left, self.disk.reads_left = self.checks_left, -1, -1
            self.disk.flips.clear()  # nobody knows which of the reads that were under way came from this copy
        runs = list(self.checked_by_loading())
        assert not self.damaged(runs), "damage was not found"
        assert not self.fails
        assert breaks != "Ctrl-C" or interrupted >= 0
        assert short is None or not budgets[short], "a budget was exceeded"
        assert self.loaded_bytes == self.loading_bytes == sum(run.nbytes for run in runs)
        assert all(self.arenas[tier].held_bytes == needs[tier] for tier in Tier)
        self.store = store
        self.staged: dict[int, int] = {}
        self.in_slot: dict[int, int] = {}
        self.fetched: set[int] = set()

    def load_all(self, store: WeightStore, stages: list[int] | None) -> None:
        """At once, or beside all else, which waits for some stages: what they need is there then."""
        if stages is None:
            store.load(self.arenas)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading_module, "OPEN_BYTES", PAGE * len(stages) + 1)
            store.begin(self.arenas)
            for number in [stage % len(self.plan.stages) for stage in stages]:
                store.ready(number)
                homes = self.plan.stages[number].homes
                for run in (*homes[Tier.DEVICE].runs, *homes[Tier.HOST].runs):
                    for tensor in run.tensors:
                        self.is_stored(tensor, operand(self.port, tensor, store._homes[tensor.name]))
            store.ready()
            assert not store.is_loading

    def opened(self, name: str, tries: str) -> WeightCopies:
        """A file, whose disk keeps its damage, maybe with a mirror or with more than one try."""
        if name not in self.files:
            path = self.paths[name]
            self.files[name] = open_weight_file(path), DamagedDisk(path), WeightsOnDisk(path), Path(path).read_bytes()
        self.file, self.disk, mirror, self.content = self.files[name]
        self.mirrored, self.waits = tries == "mirror", (0.0,) if tries == "again" else ()
        copies = (self.disk, mirror) if self.mirrored else (self.disk,)
        return WeightCopies(self.file, copies, FaultLog().tell, self.waits)

    def arena(self, tier: Tier, budget: int) -> Arena:
        def allocate(nbytes: int) -> Any:
            buffer = self.port.allocate(tier.value, nbytes)
            buffer[...] = 0xFF
            return buffer

        return Arena(tier, budget, allocate, self.port.release)

    def count_loaded(self, loaded_bytes: int, total_bytes: int) -> None:
        assert 0 < loaded_bytes <= total_bytes
        self.loaded_bytes, self.loading_bytes = loaded_bytes, total_bytes

    def is_expected(self, error: BaseException, short: Tier | None) -> None:
        if isinstance(error, CapacityError):
            assert short is not None
            assert error.tier == short.value
        elif isinstance(error, WeightFileError):
            self.names_one_of(error, self.damaged(list(self.checked_by_loading()), self.disk.failed))
        elif isinstance(error, StorageError):
            assert self.fails or (self.disk.failed and self.damaged(list(self.checked_by_loading())))
        elif not isinstance(error, KeyboardInterrupt):
            raise error

    def names_one_of(self, error: WeightFileError, datasets: list[str]) -> None:
        assert any(f"dataset {name} is damaged" in str(error) for name in datasets), str(error)

    @precondition(lambda self: self.store is not None)
    @rule()
    def release(self) -> None:
        assert self.store is not None
        self.store.release(self.arenas)
        self.store = None
        self.nothing_is_held()

    def nothing_is_held(self) -> None:
        assert not any(arena.held_bytes for arena in self.arenas.values())

    @precondition(lambda self: self.files)
    @rule(data=st.data(), change=st.integers(1, 255), between=st.booleans(), once=st.booleans())
    def damage(self, data: st.DataObject, change: int, between: bool, once: bool) -> None:
        """A byte of a dataset, or one in the gap after it, which no one reads."""
        runs = [] if self.store is None else [run for plan in self.plan.stages for run in plan.homes[Tier.DISK].runs]
        on_disk = [part for run in runs for tensor in run.tensors for part in tensor.parts]
        tables = [part for part in self.file.parts if part.dataset.startswith("tokens")]
        part = data.draw(
            st.sampled_from([*self.file.parts]) | st.sampled_from(on_disk or tables) | st.sampled_from(tables)
        )
        place = part.extent.stop if between else part.extent.offset + data.draw(st.integers(0, part.extent.nbytes - 1))
        (self.disk.flips if once else self.disk.damage)[place] = change

    @precondition(lambda self: self.files)
    @rule()
    def mend(self) -> None:
        self.disk.damage.clear()
        self.disk.flips.clear()

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), fails=st.sampled_from([-1, -1, -1, 0, 1]))
    def fetch(self, data: st.DataObject, fails: int) -> None:
        assert self.store is not None
        stage, _, slot = self.choose(data)
        plan = self.plan.stages[stage]
        runs = list(plan.homes[Tier.DISK].runs)
        self.disk.begin(fails)
        self.staged.pop(slot, None)
        try:
            self.mover.run(Lane.DISK_IN, self.store.fetch(stage, slot))
        except WeightFileError as error:
            self.names_one_of(error, self.damaged(runs, self.disk.failed))
        except StorageError:
            assert self.fails or (self.disk.failed and self.damaged(runs))
        else:
            assert not self.damaged(runs), "damage was not found"
            assert not self.fails
            self.staged[slot] = stage
            if runs:
                self.fetched.add(stage)
        self.disk.reads_left = -1

    @precondition(lambda self: self.store is not None and self.fetched)
    @rule(data=st.data(), change=st.integers(1, 255))
    def fetch_what_was_damaged_since_it_was_fetched(self, data: st.DataObject, change: int) -> None:
        """What was sound once is checked again."""
        stage = data.draw(st.sampled_from(sorted(self.fetched)))
        tensors = [tensor for run in self.plan.stages[stage].homes[Tier.DISK].runs for tensor in run.tensors]
        part = data.draw(st.sampled_from([part for tensor in tensors for part in tensor.parts]))
        self.disk.damage[part.extent.offset + data.draw(st.integers(0, part.extent.nbytes - 1))] = change
        _, slot, staged = self.choose(data)
        self.fetch(_chosen(stage, slot, staged), -1)

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data())
    def load_slot(self, data: st.DataObject) -> None:
        assert self.store is not None
        stage, slot, staged = self.choose(data)
        if self.plan.stages[stage].homes[Tier.DISK].runs and self.staged.get(staged) != stage:
            return
        self.mover.run(Lane.WEIGHTS_IN, self.store.load_slot(stage, slot, staged))
        self.in_slot[slot] = stage

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data())
    def stream(self, data: st.DataObject) -> None:
        """As a pass does it."""
        assert self.store is not None
        stage, slot, staged = self.choose(data)
        same = _chosen(stage, slot, staged)
        self.fetch(same, -1)
        self.load_slot(same)
        self.operands_are_those_of_the_file()

    @precondition(lambda self: self.store is not None)
    @rule(ahead=st.sampled_from([0, 3 * PAGE, 40 * PAGE]), short=st.booleans())
    def restage(self, ahead: int, short: bool) -> None:
        """Another job reads further ahead, or less far: all but what waits from disk stays where it is."""
        assert self.store is not None
        self.plan = replace(self.plan, read_ahead_bytes=ahead)
        needs = sum(aligned(nbytes, PAGE) for tier, _, nbytes in self.plan.needs() if tier is Tier.HOST)
        short = short and self.plan.staging_slot_bytes > 0
        self.arenas[Tier.HOST].budget_bytes = needs - short
        self.staged.clear()
        try:
            self.store.restage(self.plan, self.arenas)
        except CapacityError:
            assert short
            self.store.release(self.arenas)
            self.nothing_is_held()
            self.store = None
        else:
            assert not short, "a budget was exceeded"
            assert self.arenas[Tier.HOST].held_bytes == needs

    def choose(self, data: Any) -> tuple[int, int, int]:
        """A stage, one of its slots on the device, and one of its places on the host."""
        if isinstance(data, tuple):
            return data
        counts = len(self.plan.stages), self.plan.slots, self.plan.staging_slots
        stage, slot, staged = (data.draw(st.integers(0, count - 1)) for count in counts)
        return stage, slot, staged

    @precondition(lambda self: self.store is not None)
    @rule()
    def operands_are_those_of_the_file(self) -> None:
        assert self.store is not None
        filled = dict(self.in_slot)
        for stage, plan in enumerate(self.plan.stages):
            if not plan.streamed_bytes:
                filled.setdefault(stage + self.plan.slots, stage)
        for slot, stage in filled.items():
            found = self.store.operands(stage, slot % self.plan.slots)
            tensors = self.plan.stages[stage].stage.tensors
            assert found.keys() == {tensor.name for tensor in tensors}
            for name, matrix in found.items():
                self.is_stored(self.file.tensors[name], matrix)

    def is_stored(self, stored: StoredTensor, matrix: Any) -> None:
        """The tensor's bytes as they are in the file: all that is used has passed its check."""
        grouped = isinstance(matrix, QuantizedMatrix)
        arrays = (matrix.codes, matrix.scale, matrix.zero) if grouped else (matrix,)
        for part, array in zip(stored.parts, arrays, strict=True):
            found: Any = array
            assert (found.shape, found.dtype) == (part.shape, part.dtype)
            expected = self.content[part.extent.offset : part.extent.stop]
            assert found.tobytes() == expected, f"{part.dataset} is not what the file holds"

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), fails=st.sampled_from([-1, -1, 0]))
    def token_rows(self, data: st.DataObject, fails: int) -> None:
        assert self.store is not None
        file, tile_rows = self.file, self.file.tile_rows
        tokens = data.draw(st.lists(st.integers(0, file.spec.vocabulary - 1), min_size=1, max_size=12))
        names = [tile.name for tile in token_tiles(file.spec, tile_rows)]
        tokens += self.damaged_tokens(names)
        found: dict[int, bytes] = {}
        ids = np.array(tokens, np.int32)
        self.disk.begin(fails)
        try:
            for read in self.store.table_reads(ids, [number * tile_rows for number in range(len(names))]):
                row_bytes = read.tensor.parts[0].extent.nbytes // read.tensor.shape[0]
                for piece in read.pieces(row_bytes):
                    rows = self.store.read_table_rows(piece)
                    found.update(zip(piece.tokens.tolist(), map(np.ndarray.tobytes, rows), strict=True))
        except WeightFileError as error:
            self.names_one_of(
                error, self.damaged([Run.of([file.tensors[names[token // tile_rows]]]) for token in tokens])
            )
            return
        finally:
            self.disk.reads_left = -1
        for place, token in enumerate(tokens):
            tile, row = divmod(token, tile_rows)
            part, table = file.tensors[names[tile]].parts[0], self.store.device_table(names[tile])
            assert (table is None) == (place in found), "a row has one home"
            size = part.extent.nbytes // part.shape[0]
            whole = self.content[part.extent.offset : part.extent.stop]
            if table is not None:
                found[place] = table[row].tobytes()
            assert found[place] == whole[row * size : (row + 1) * size], f"token {token}"

    @precondition(lambda self: self.store is not None and self.plan.gathered)
    @rule(data=st.data(), change=st.integers(1, 255))
    def gather_what_was_damaged_since_it_was_loaded(self, data: st.DataObject, change: int) -> None:
        part = data.draw(st.sampled_from([tensor.parts[0] for tensor, _ in self.plan.gathered]))
        self.disk.damage[part.extent.offset + data.draw(st.integers(0, part.extent.nbytes - 1))] = change
        self.token_rows(data, -1)

    def damaged_tokens(self, names: list[str]) -> list[int]:
        """One token whose row is damaged on the disk, if there is any."""
        for tile, name in enumerate(names):
            extent, shape = self.file.tensors[name].parts[0].extent, self.file.tensors[name].shape
            for place in self.disk.damage:
                if extent.offset <= place < extent.stop:
                    return [tile * self.file.tile_rows + (place - extent.offset) // (extent.nbytes // shape[0])]
        return []

    def teardown(self) -> None:
        if self.store is not None:
            self.release()
        for _, disk, mirror, _ in self.files.values():
            disk.close()
            mirror.close()
        self.port.close()
        self.patch.undo()


def _chosen(stage: int, slot: int, staged: int) -> Any:
    """Stands for what is drawn, where a rule calls another."""
    return stage, slot, staged


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[WeightStoreStates]:
    folder = tmp_path_factory.mktemp("weights")
    for name, (spec, scheme, dtype) in SPECS.items():
        write_model(folder / f"{name}.h5", spec, scheme=scheme, dtype=dtype)
    WeightStoreStates.paths = {name: str(folder / f"{name}.h5") for name in SPECS}
    return WeightStoreStates


def test_a_weight_store_does_what_its_model_does(machine: type[WeightStoreStates]) -> None:
    run_state_machine_as_test(machine)  # type: ignore[no-untyped-call]


class HasOneStagingSlot(WeightStore):
    def fetch(self, stage: int, slot: int) -> Any:
        return super().fetch(stage, 0)


class ForgetsTheSecondPart(WeightStore):
    def load_slot(self, stage: int, slot: int, staged: int) -> Any:
        return super().load_slot(stage, slot, staged)[:1]


class GathersWhatItNeverChecked(WeightStore):
    def _load_through(self, places: Any) -> None:
        super()._load_through(places)
        self._row_checksums.clear()


class SaysThatAllIsReady(WeightStore):
    def ready(self, stage: int | None = None) -> None:
        super().ready(stage and 0)


class WaitsOnce(WeightStore):
    def ready(self, stage: int | None = None) -> None:
        super().ready(stage)
        self._loading = None


class TrustsTheSecondReading(WeightStore):
    def _load_through(self, places: Any) -> None:
        class Reader(RunInPieces):
            def begin_again(self, error: WeightFileError) -> None:
                self._reading.begin_again(error)
                self.failure, self._checker = None, PartChecker([], 0, "")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading_module, "RunInPieces", Reader)
            super()._load_through(places)


class CopiesWhatHasNotCome(WeightStore):
    """What is copied to the device is what a place held before: always, and not when a race happens to be lost."""

    def _load_through(self, places: Any) -> None:
        submit = self.mover.submit

        def early(lane: Lane, copies: Any, after: Any) -> Any:
            for copy in copies if lane is Lane.WEIGHTS_IN else ():
                with suppress(StorageError, WeightFileError):
                    for ticket in after:
                        ticket.wait()
                host_bytes(self.backend, copy.source)[:] ^= 0xFF
            return submit(lane, copies, after)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.mover, "submit", early)
            super()._load_through(places)


class KeepsItsCountOfTheDisk(WeightStore):
    def release(self, arenas: Any) -> None:
        self._counted_bytes = 0
        super().release(arenas)


class ChecksTheFirstTime(WeightStore):
    def fetch(self, stage: int, slot: int) -> Any:
        seen = self.__dict__.setdefault("seen", set())
        copies = super().fetch(stage, slot)
        if stage in seen:
            for copy in copies:
                object.__setattr__(copy.source, "place", Unchecked(self.source))
        seen.add(stage)
        return copies


class Unchecked:
    def __init__(self, source: Any) -> None:
        self.source = source

    def read(self, offset: int, into: Any) -> None:
        self.source.read(offset, into)


WRONG: tuple[Callable[..., Any], ...] = (
    HasOneStagingSlot,
    ForgetsTheSecondPart,
    GathersWhatItNeverChecked,
    KeepsItsCountOfTheDisk,
    ChecksTheFirstTime,
    TrustsTheSecondReading,
    CopiesWhatHasNotCome,
    SaysThatAllIsReady,
    WaitsOnce,
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_weight_store_is_caught(
    machine: type[WeightStoreStates], wrong: type, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "WeightStore", wrong)
    assert isinstance(caught(machine), AssertionError)
