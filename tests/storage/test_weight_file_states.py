"""A weight file in the making beside a model of it: it appears whole or not at all, and what is damaged is told."""

import errno
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from flexref import files
from flexref.architecture.spec import ModelSpec
from flexref.errors import CheckpointError, QuantizationError, StorageError, WeightFileError
from flexref.files import NewFile
from flexref.storage import writer as writer_module
from flexref.storage.sink import Sink
from flexref.storage.weightfile import open_weight_file, read_part, verify
from flexref.storage.writer import WeightFileWriter

SPECS = (
    ModelSpec("tied", 40, 4, 6, 6, 1, 2, 8),
    ModelSpec("untied", 30, 4, 6, 5, 1, 1, 7, tied_head=False, bias=False),
)
FULL = OSError(errno.ENOSPC, "No space left on device")


class WeightFileStates(RuleBasedStateMachine):
    """Writers one after the other for one path, most of which come to grief; `good` is the file that is there."""

    kit: Any
    open_files: Any

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="flexref-states-"))
        self.path = self.folder / "model.h5"
        self.open_before = type(self).open_files()
        self.writer: WeightFileWriter | None = None
        self.good: bytes | None = None
        self.tensors: dict[str, Any] = {}
        self.seed = 0

    # A file is made

    @precondition(lambda self: self.writer is None)
    @rule(
        spec=st.sampled_from(SPECS),
        scheme=st.sampled_from(["none", "int4", "int8"]),
        dtype=st.sampled_from(["float16", "float32"]),
        tokenizer=st.binary(max_size=20),
        full=st.sampled_from([False, False, False, True]),
    )
    def begin(self, spec: ModelSpec, scheme: str, dtype: str, tokenizer: bytes, full: bool) -> None:
        writer = WeightFileWriter(self.path, spec, scheme, None if scheme == "none" else 4, dtype, tokenizer)
        with pytest.MonkeyPatch.context() as patch:
            if full:
                patch.setattr(writer_module.os, "posix_fallocate", failing)
                with pytest.raises(StorageError, match="No space left"):
                    writer.__enter__()
                return
            writer.__enter__()
        self.writer, self.written, self.tokenizer = writer, dict[str, Any](), tokenizer or None

    @property
    def due(self) -> Any:
        """The tensor to be written next; None if all are."""
        assert self.writer is not None
        rest = self.writer.tensors[len(self.written) :]
        return rest[0] if rest else None

    def values(self, shape: tuple[int, ...]) -> Any:
        self.seed += 1
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    @precondition(lambda self: self.writer is not None and self.due is not None)
    @rule(tensors=st.integers(1, 12), slab=st.integers(1, 20))
    def write(self, tensors: int, slab: int) -> None:
        assert self.writer is not None
        for _ in range(tensors):
            due = self.due
            if due is None:
                return
            values = self.values(due.shape)
            slabs = ((due.name, values[first : first + slab]) for first in range(0, len(values), slab))
            self.writer.write_slabs(due.name, slabs)
            self.written[due.name] = values

    @precondition(lambda self: self.writer is not None)
    @rule(data=st.data())
    def write_what_is_not_due(self, data: st.DataObject) -> None:
        assert self.writer is not None
        tensor = data.draw(st.sampled_from(self.writer.tensors))
        if self.due is None or tensor.name != self.due.name:
            with pytest.raises(ValueError, match="is not the next tensor"):
                self.writer.write(tensor.name, self.values(tensor.shape))

    @precondition(lambda self: self.writer is not None and self.due is not None)
    @rule(how=st.sampled_from(["not finite", "too wide", "too few rows", "too many rows"]))
    def write_what_does_not_fit(self, how: str) -> None:
        """The same tensor may be written again."""
        assert self.writer is not None
        due = self.due
        values = self.values(due.shape)
        slabs = [values]
        if how == "not finite":
            values.flat[-1] = np.nan
        elif how == "too wide":
            slabs = [self.values((*due.shape, 2))]
        else:
            slabs = [values[1:]] if how == "too few rows" else [values, values]
        with pytest.raises(ValueError if how != "not finite" else (CheckpointError, QuantizationError)):
            self.writer.write_slabs(due.name, [(due.name, slab) for slab in slabs])

    @precondition(lambda self: self.writer is not None and self.due is not None)
    @rule()
    def fill_the_disk(self) -> None:
        assert self.writer is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "pwrite", failing)
            with pytest.raises(StorageError, match=f"cannot write {self.path}: No space left"):
                self.writer.write(self.due.name, self.values(self.due.shape))
        self.abandon()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def abandon(self) -> None:
        assert self.writer is not None
        self.writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule(fails=st.sampled_from([None, None, None, "pwrite", "ftruncate", "fsync", "link", "replace"]))
    def finish(self, fails: str | None) -> None:
        assert self.writer is not None
        writer, due, self.writer = self.writer, self.due, None
        if due is not None:
            with pytest.raises(ValueError, match=f"{due.name} was not written"):
                writer.__exit__(None, None, None)
            return
        if fails is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, fails, failing)
                with pytest.raises(StorageError, match="No space left"):
                    writer.__exit__(None, None, None)
            return
        writer.__exit__(None, None, None)
        self.good, self.tensors, self.known_tokenizer = self.path.read_bytes(), self.written, self.tokenizer

    @precondition(lambda self: self.writer is not None)
    @rule(fails=st.sampled_from([None, None, None, "fsync", "replace"]))
    def write_all_and_finish(self, fails: str | None) -> None:
        while self.due is not None:
            self.write(1, 7)
        self.finish(fails)

    # A file is read

    @precondition(lambda self: self.good is not None)
    @rule()
    def read(self) -> None:
        found = open_weight_file(self.path)
        self.kit.assert_same(found, SimpleNamespace(tensors=self.tensors))
        assert found.tokenizer_json == self.known_tokenizer
        assert verify(self.path) == []

    @precondition(lambda self: self.good is not None)
    @rule(data=st.data(), change=st.integers(1, 255), in_part=st.booleans())
    def flip_a_byte(self, data: st.DataObject, change: int, in_part: bool) -> None:
        """Damage is told when the file is opened, or by its dataset's name, or it changes nothing."""
        assert self.good is not None
        parts = list(open_weight_file(self.path).parts)
        part = data.draw(st.sampled_from(parts))
        start, stop = (part.extent.offset, part.extent.stop) if in_part else (0, len(self.good))
        place = data.draw(st.integers(start, stop - 1))
        damaged = bytearray(self.good)
        damaged[place] ^= change
        self.path.write_bytes(damaged)
        hit = [part for part in parts if part.extent.offset <= place < part.extent.stop]
        try:
            found = open_weight_file(self.path)
        except WeightFileError:
            assert not hit or hit[0].dataset == "tokenizer"
        else:
            assert verify(self.path) == [part.dataset for part in hit]
            for each in hit:
                with pytest.raises(WeightFileError, match=each.dataset):
                    read_part(next(part for part in found.parts if part.dataset == each.dataset))
            if not hit:
                self.kit.assert_same(found, SimpleNamespace(tensors=self.tensors))
        self.path.write_bytes(self.good)

    @precondition(lambda self: self.good is not None)
    @rule(data=st.data())
    def cut_it_short(self, data: st.DataObject) -> None:
        assert self.good is not None
        self.path.write_bytes(self.good[: data.draw(st.integers(0, len(self.good) - 1))])
        with pytest.raises(WeightFileError, match=r"model\.h5"):
            open_weight_file(self.path)
        self.path.write_bytes(self.good)

    # What is always so

    @invariant()
    def only_whole_files_have_a_name(self) -> None:
        named = [name for name in os.listdir(self.folder) if self.writer is None or not name.endswith(".partial")]
        assert named == ([] if self.good is None else ["model.h5"])
        assert self.good is None or self.path.read_bytes() == self.good

    @invariant()
    def nothing_is_left_open(self) -> None:
        assert self.writer is not None or type(self).open_files() <= self.open_before

    def teardown(self) -> None:
        if self.writer is not None:
            self.abandon()
        shutil.rmtree(self.folder)


def failing(*_: Any, **__: Any) -> Any:
    raise FULL


@pytest.fixture
def machine(kit: Any, open_files: Any) -> type[WeightFileStates]:
    WeightFileStates.kit, WeightFileStates.open_files = kit, staticmethod(open_files)
    return WeightFileStates


def test_a_weight_file_is_what_its_model_is(machine: type[WeightFileStates]) -> None:
    # A step may write a whole file, so there are fewer of them than a machine has as a rule.
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=15))  # type: ignore[no-untyped-call]


class PublishesWhatIsNotComplete(WeightFileWriter):
    def _complete(self) -> None:
        self._next = len(self._tensors)
        super()._complete()


class CountsATensorThatFailed(WeightFileWriter):
    def write_slabs(self, name: str, slabs: Any) -> None:
        try:
            super().write_slabs(name, slabs)
        except CheckpointError:
            self._next += 1
            raise


class LeavesItsFileOpen(WeightFileWriter):
    def _abandon(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._image is not None:
            self._image.close()


class WritesIntoTheOldFile(NewFile):
    def publish(self) -> None:
        self._path.write_bytes(os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0))
        super().publish()


class SumsUpTheFirstRowsAlone(Sink):
    def append(self, rows: Any) -> None:
        known = self._digest.copy()
        super().append(rows)
        if self._row > len(rows):
            self._digest = known


WRONG = (
    (PublishesWhatIsNotComplete, None),
    (CountsATensorThatFailed, None),
    (LeavesItsFileOpen, None),
    (WritesIntoTheOldFile, (writer_module, "NewFile")),
    (SumsUpTheFirstRowsAlone, (writer_module, "Sink")),
)


@pytest.mark.parametrize(("wrong", "place"), WRONG)
def test_a_wrong_writer_is_caught(
    machine: type[WeightFileStates], wrong: type, place: Any, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place is None:
        monkeypatch.setitem(globals(), "WeightFileWriter", wrong)
    else:
        monkeypatch.setattr(*place, wrong)
    assert isinstance(caught(machine), AssertionError | pytest.fail.Exception | WeightFileError | ValueError)
