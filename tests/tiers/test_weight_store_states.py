"""A weight store beside the file's own bytes: loaded, streamed, damaged, mended, interrupted and released at random."""

from collections import Counter
from collections.abc import Callable, Iterator
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
from flexref.storage.weightfile import Part, StoredTensor, WeightFile, open_weight_file
from flexref.tiers import weights as weights_module
from flexref.tiers import weights_plan as plan_module
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Traffic
from flexref.tiers.weights import WeightStore
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
    """Some bytes come back changed, and a read may fail."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.damage: dict[int, int] = {}
        self.reads_left = -1
        """Before one fails; below 0: none does."""
        self.failed = False
        self.arrived: set[int] = set()

    def _serve(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        for place, change in self.damage.items():
            if offset <= place < offset + into.nbytes:
                into[place - offset] ^= change

    def _fail(self) -> None:
        self.reads_left -= 1
        if self.reads_left == -1:
            self.failed = True
            raise StorageError("the disk fails")

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        self._fail()
        super().read(offset, into)
        self._serve(offset, into)
        self.arrived.add(offset)

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        self._fail()
        super().read_rows(offsets, into)
        for number, offset in enumerate(offsets.tolist()):
            self._serve(offset, into[number])


class WeightStoreStates(RuleBasedStateMachine):
    """One store after the other on each of some files; slots are filled with any stage, in any order."""

    paths: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(plan_module, "CHUNK_BYTES", PAGE)  # so that a run is loaded in many pieces
        self.patch.setattr(weights_module, "PIECE_BYTES", 64)
        self.port = NumpyBackend(1 << 16)
        self.checks_left = -1
        self.mover = Mover(self.port, Traffic(), self.check)
        self.files: dict[str, tuple[WeightFile, DamagedDisk, bytes]] = {}
        self.store: WeightStore | None = None

    def check(self) -> None:
        self.checks_left -= 1
        if self.checks_left == -1:
            raise KeyboardInterrupt

    # What is known

    def now(self, part: Part) -> bytes:
        """What a read of the part would give."""
        found = np.frombuffer(self.content, np.uint8)[part.extent.offset : part.extent.stop].copy()
        self.disk._serve(part.extent.offset, found)
        return found.tobytes()

    def damaged(self, runs: list[Run]) -> list[str]:
        """The datasets of some runs that do not match their checksums."""
        parts = [part for run in runs for tensor in run.tensors for part in tensor.parts]
        places = [place for place, change in self.disk.damage.items() if change]
        return [
            part.dataset for part in parts if any(part.extent.offset <= place < part.extent.stop for place in places)
        ]

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
        slots=st.integers(1, 2),
        short=st.sampled_from([None, None, None, *Tier]),
        breaks=st.sampled_from([None, None, "disk", "Ctrl-C"]),
        after=st.integers(0, 12),
    )
    def load(
        self, name: str, shares: tuple[float, float], slots: int, short: Tier | None, breaks: str | None, after: int
    ) -> None:
        if name not in self.files:
            path = self.paths[name]
            self.files[name] = open_weight_file(path), DamagedDisk(path), Path(path).read_bytes()
        self.file, self.disk, self.content = self.files[name]
        self.plan = WeightsPlan.of(self.file, Shares.of(*shares), slots)
        needs: Counter[Tier] = Counter()
        for tier, _, nbytes in self.plan.needs():
            needs[tier] += aligned(nbytes, PAGE)
        budgets = {tier: needs[tier] for tier in Tier}
        budgets[Tier.HOST] += aligned(self.plan.loading_bytes, PAGE)
        if short is not None and budgets[short]:
            budgets[short] -= 1
        self.arenas = {tier: self.arena(tier, budgets[tier]) for tier in Tier}
        self.loaded_bytes = self.loading_bytes = 0
        store = WeightStore(self.plan, self.mover, self.disk, self.count_loaded)
        self.disk.failed, self.disk.reads_left = False, after if breaks == "disk" else -1
        self.checks_left = after if breaks == "Ctrl-C" else -1
        try:
            store.allocate(self.arenas)
            assert all(self.arenas[tier].held_bytes == needs[tier] for tier in Tier)
            store.load(self.arenas)
        except BaseException as error:
            self.is_expected(error, short)
            store.release(self.arenas)
            self.nothing_is_held()
            return
        finally:
            interrupted, self.checks_left, self.disk.reads_left = self.checks_left, -1, -1
        runs = list(self.checked_by_loading())
        assert not self.damaged(runs), "damage was not found"
        assert not self.disk.failed
        assert breaks != "Ctrl-C" or interrupted >= 0
        assert short is None or not budgets[short], "a budget was exceeded"
        assert self.loaded_bytes == self.loading_bytes == sum(run.nbytes for run in runs)
        assert all(self.arenas[tier].held_bytes == needs[tier] for tier in Tier)
        self.store, self.passed = store, set[int]()
        self.staged: dict[int, tuple[int, dict[str, bytes]]] = {}
        self.in_slot: dict[int, tuple[int, dict[str, bytes]]] = {}

    def arena(self, tier: Tier, budget: int) -> Arena:
        def allocate(nbytes: int) -> Any:
            buffer = self.port.allocate(tier.value, nbytes)
            buffer[...] = 0xFF
            return buffer

        return Arena(tier, budget, allocate, self.port.release)

    def count_loaded(self, loaded_bytes: int, total_bytes: int) -> None:
        assert self.loaded_bytes < loaded_bytes <= total_bytes
        self.loaded_bytes, self.loading_bytes = loaded_bytes, total_bytes

    def is_expected(self, error: BaseException, short: Tier | None) -> None:
        if isinstance(error, CapacityError):
            assert short is not None
            assert error.tier == short.value
        elif isinstance(error, WeightFileError):
            self.names_one_of(error, self.damaged(list(self.checked_by_loading())))
        elif isinstance(error, StorageError):
            assert self.disk.failed
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
    @rule(data=st.data(), change=st.integers(1, 255), between=st.booleans())
    def damage(self, data: st.DataObject, change: int, between: bool) -> None:
        """A byte of a dataset, or one in the gap after it, which no one reads."""
        part = data.draw(st.sampled_from([*self.file.parts]))
        place = part.extent.stop if between else part.extent.offset + data.draw(st.integers(0, part.extent.nbytes - 1))
        self.disk.damage[place] = change

    @precondition(lambda self: self.files)
    @rule()
    def mend(self) -> None:
        self.disk.damage.clear()

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), fails=st.sampled_from([-1, -1, -1, 0, 1]))
    def fetch(self, data: st.DataObject, fails: int) -> None:
        assert self.store is not None
        stage, slot = self.choose(data)
        plan = self.plan.stages[stage]
        runs, self.disk.failed, self.disk.reads_left = plan.homes[Tier.DISK].runs, False, fails
        self.disk.arrived.clear()
        always = plan.stage.kind is StageKind.HEAD and self.file.spec.tied_head
        image = {part.dataset: self.now(part) for run in runs for tensor in run.tensors for part in tensor.parts}
        suspect: list[str] = []
        for run in runs:
            if not always and run.file_offset not in self.passed:
                suspect += self.damaged([run])
        self.staged.pop(slot, None)
        try:
            self.mover.run(Lane.DISK_IN, self.store.fetch(stage, slot))
        except WeightFileError as error:
            self.names_one_of(error, suspect)
        except StorageError:
            assert self.disk.failed
        else:
            assert not suspect, "damage was not found"
            assert not self.disk.failed
            self.staged[slot] = stage, image
        self.disk.reads_left = -1
        arrived = [run for run in runs if run.file_offset in self.disk.arrived]
        self.passed |= {run.file_offset for run in arrived if not self.damaged([run])}

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data())
    def load_slot(self, data: st.DataObject) -> None:
        assert self.store is not None
        stage, slot = self.choose(data)
        staged, image = self.staged.get(slot, (-1, {}))
        if self.plan.stages[stage].homes[Tier.DISK].runs and staged != stage:
            return
        self.mover.run(Lane.WEIGHTS_IN, self.store.load_slot(stage, slot))
        self.in_slot[slot] = stage, (image if staged == stage else {})

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data())
    def stream(self, data: st.DataObject) -> None:
        """As a pass does it."""
        assert self.store is not None
        stage, slot = self.choose(data)
        same = _chosen(stage, slot)
        self.fetch(same, -1)
        self.load_slot(same)
        self.operands_are_those_of_the_file()

    def choose(self, data: Any) -> tuple[int, int]:
        if isinstance(data, tuple):
            return data
        return data.draw(st.integers(0, len(self.plan.stages) - 1)), data.draw(st.integers(0, self.plan.slots - 1))

    @precondition(lambda self: self.store is not None)
    @rule()
    def operands_are_those_of_the_file(self) -> None:
        assert self.store is not None
        filled = dict(self.in_slot)
        for stage, plan in enumerate(self.plan.stages):
            if not plan.streamed_bytes:
                filled.setdefault(stage + self.plan.slots, (stage, {}))
        for slot, (stage, image) in filled.items():
            found = self.store.operands(stage, slot % self.plan.slots)
            tensors = self.plan.stages[stage].stage.tensors
            assert found.keys() == {tensor.name for tensor in tensors}
            for name, matrix in found.items():
                self.is_stored(self.file.tensors[name], matrix, image)

    def is_stored(self, stored: StoredTensor, matrix: Any, image: dict[str, bytes]) -> None:
        """The tensor's bytes as they were when they were fetched; what is loaded once has passed its check."""
        grouped = isinstance(matrix, QuantizedMatrix)
        arrays = (matrix.codes, matrix.scale, matrix.zero) if grouped else (matrix,)
        for part, array in zip(stored.parts, arrays, strict=True):
            found: Any = array
            assert (found.shape, found.dtype) == (part.shape, part.dtype)
            expected = image.get(part.dataset, self.content[part.extent.offset : part.extent.stop])
            assert found.tobytes() == expected, f"{part.dataset} is not what was read"

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), fails=st.sampled_from([-1, -1, 0]))
    def token_rows(self, data: st.DataObject, fails: int) -> None:
        assert self.store is not None
        file, tile_rows = self.file, self.file.tile_rows
        tokens = data.draw(st.lists(st.integers(0, file.spec.vocabulary - 1), min_size=1, max_size=12))
        names = [tile.name for tile in token_tiles(file.spec, tile_rows)]
        found: dict[int, bytes] = {}
        ids = np.array(tokens, np.int32)
        self.disk.failed, self.disk.reads_left = False, fails
        try:
            for read in self.store.table_reads(ids, [number * tile_rows for number in range(len(names))]):
                row_bytes = read.tensor.parts[0].extent.nbytes // read.tensor.shape[0]
                for piece in read.pieces(row_bytes):
                    rows = self.store.read_table_rows(piece)
                    found.update(zip(piece.tokens.tolist(), map(np.ndarray.tobytes, rows), strict=True))
        except StorageError:
            assert self.disk.failed
            return
        finally:
            self.disk.reads_left = -1
        assert not self.disk.failed
        for place, token in enumerate(tokens):
            tile, row = divmod(token, tile_rows)
            part, table = file.tensors[names[tile]].parts[0], self.store.device_table(names[tile])
            assert (table is None) == (place in found), "a row has one home"
            size = part.extent.nbytes // part.shape[0]
            if table is not None:
                found[place], whole = table[row].tobytes(), self.content[part.extent.offset : part.extent.stop]
            else:
                on_disk = names[tile] in self.on_disk()
                whole = self.now(part) if on_disk else self.content[part.extent.offset : part.extent.stop]
            assert found[place] == whole[row * size : (row + 1) * size], f"token {token}"

    def on_disk(self) -> set[str]:
        streamed = {
            tensor.name for plan in self.plan.stages for run in plan.homes[Tier.DISK].runs for tensor in run.tensors
        }
        return streamed | {tensor.name for tensor, tier in self.plan.gathered if tier is Tier.DISK}

    def teardown(self) -> None:
        if self.store is not None:
            self.release()
        for _, disk, _ in self.files.values():
            disk.close()
        self.port.close()
        self.patch.undo()


def _chosen(stage: int, slot: int) -> Any:
    """Stands for what is drawn, where a rule calls another."""
    return stage, slot


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[WeightStoreStates]:
    folder = tmp_path_factory.mktemp("weights")
    for name, (spec, scheme, dtype) in SPECS.items():
        write_model(folder / f"{name}.h5", spec, scheme=scheme, dtype=dtype)
    WeightStoreStates.paths = {name: str(folder / f"{name}.h5") for name in SPECS}
    return WeightStoreStates


def test_a_weight_store_does_what_its_model_does(machine: type[WeightStoreStates]) -> None:
    run_state_machine_as_test(machine)  # type: ignore[no-untyped-call]


class TrustsWhatWasOnlyAskedFor(WeightStore):
    def fetch(self, stage: int, slot: int) -> Any:
        copies = super().fetch(stage, slot)
        self._checked_runs.update(run.file_offset for run in self.plan.stages[stage].homes[Tier.DISK].runs)
        return copies


class HasOneStagingSlot(WeightStore):
    def fetch(self, stage: int, slot: int) -> Any:
        return super().fetch(stage, 0)


class ForgetsTheSecondPart(WeightStore):
    def load_slot(self, stage: int, slot: int) -> Any:
        return super().load_slot(stage, slot)[:1]


class GathersWhatItNeverChecked(WeightStore):
    def _through(self, run: Run, bounce: Any, home: Any) -> None:
        if home is not None:
            super()._through(run, bounce, home)


class KeepsItsCountOfTheDisk(WeightStore):
    def release(self, arenas: Any) -> None:
        self._counted_bytes = 0
        super().release(arenas)


class ChecksNothing(WeightStore):
    def _check(self, run: Run, memory: Any) -> None:
        self._checked_runs.add(run.file_offset)


WRONG: tuple[Callable[..., Any], ...] = (
    TrustsWhatWasOnlyAskedFor,
    HasOneStagingSlot,
    ForgetsTheSecondPart,
    GathersWhatItNeverChecked,
    KeepsItsCountOfTheDisk,
    ChecksNothing,
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_weight_store_is_caught(
    machine: type[WeightStoreStates], wrong: type, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "WeightStore", wrong)
    assert isinstance(caught(machine), AssertionError)
