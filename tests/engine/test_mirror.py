"""Disks that fail under a job: what they do not give is read again, then from the mirror; no token is another."""

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.events import FaultSeen, Notice
from flexref.engine.request import Request
from flexref.errors import FlexrefError, PolicyError, StorageError, WeightFileError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.random_weights import random_file
from flexref.tiers import disk, weight_copies

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
POLICIES = {"disk": Policy(Shares(0, 0, 1)), "device": Policy(), "host": Policy(Shares(0, 1, 0))}
REQUEST = Request(4, ignore_eos=True)
PROMPTS = [[1, 2, 3], [9, 8]]


class Faulty:
    """Stands for `preadv` of some files: `fails` says of the call of that number on that path what becomes of it."""

    def __init__(self) -> None:
        self.preadv = os.preadv
        self.names: dict[int, str] = {}
        self.calls: Counter[str] = Counter()
        self.fails: Callable[[str, int], str] = lambda name, number: ""
        self.lock = threading.Lock()

    def __call__(self, file: int, buffers: Any, offset: int) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{file}")).name
        with self.lock:
            self.calls[name] += 1
            fault = self.fails(name, self.calls[name])
        if fault == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        count = self.preadv(file, buffers, offset)
        if fault == "flip":
            buffers[0][count // 2] ^= 4
        if fault == "short":
            return max(1, count // 2)
        return 0 if fault == "end" else count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_model(made / "model.h5", SPEC)
    write_model(made / "other.h5", SPEC, seed=5)
    write_model(made / "int4.h5", SPEC, scheme="int4")
    shutil.copy(made / "model.h5", made / "mirror.h5")
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return tokens(folder)


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with pytest.MonkeyPatch.context() as patch:
        made = Faulty()
        patch.setattr(disk.os, "preadv", made)
        patch.setattr(weight_copies, "WAITS_S", (0.0, 0.0))
        yield made


def tokens(folder: Path, home: str = "disk", told: list[FaultSeen] | None = None, **given: Any) -> list[list[int]]:
    def tell(event: Any) -> None:
        if isinstance(event, FaultSeen) and told is not None:
            assert threading.current_thread() is threading.main_thread()
            told.append(event)

    with load(folder / "model.h5", policy=POLICIES[home], on_event=tell, **given) as engine:
        return [output.token_ids for output in engine.generate(PROMPTS, REQUEST).outputs]


@given(
    home=st.sampled_from(["disk", "disk", "device", "host"]),
    first=st.integers(1, 60),
    times=st.integers(1, 12),
    fault=st.sampled_from(["EIO", "flip", "short", "end"]),
    mirrored=st.booleans(),
)
def test_a_read_that_fails_changes_no_token(
    folder: Path, expected: list[list[int]], home: str, first: int, times: int, fault: str, mirrored: bool
) -> None:
    """However often the file fails: with a mirror the tokens come, without one they come or there is one line."""
    with pytest.MonkeyPatch.context() as patch:
        faulty, told = Faulty(), list[FaultSeen]()
        patch.setattr(disk.os, "preadv", faulty)
        patch.setattr(weight_copies, "WAITS_S", (0.0, 0.0))
        with load(folder / "model.h5", mirror=folder / "mirror.h5" if mirrored else None):
            opening = faulty.calls["model.h5"]
        faulty.calls.clear()

        def fails(name: str, number: int) -> str:
            number -= opening
            return fault if name == "model.h5" and first <= number < first + times else ""

        faulty.fails = fails
        try:
            found = tokens(folder, home, told, mirror=folder / "mirror.h5" if mirrored else None)
        except FlexrefError as error:
            failure: FlexrefError | None = error
        else:
            assert found == expected
            failure = None
        if failure is not None:
            assert not mirrored
            assert times > 1
            assert "model.h5" in str(failure)
            assert "\n" not in str(failure)
            assert any(each.kind == "fault" for each in told)
        reached = faulty.calls["model.h5"] - opening >= first
        assert bool(told) == (reached and fault != "short"), "every fault is told, and nothing else"


def test_what_is_left_names_file_dataset_byte_and_tries(folder: Path, faulty: Faulty) -> None:
    faulty.fails = lambda name, number: "EIO"
    told: list[FaultSeen] = []
    with pytest.raises(
        StorageError,
        match=r"cannot read .*model\.h5 at byte \d+: Input/output error \(dataset \S+, 3 tries\)$",
    ):
        tokens(folder, "disk", told)
    # What a pass reads and what loads beside it are two ranges, and may both have been begun.
    tries: dict[int, list[str]] = {}
    for fault in told:
        tries.setdefault(fault.offset, []).append(fault.kind)
    assert tries
    assert all(kinds == ["retry", "retry", "fault"] for kinds in tries.values())


def test_a_file_that_is_gone_for_good_is_not_waited_for_again_and_again(
    folder: Path, expected: list[list[int]], faulty: Faulty
) -> None:
    told: list[FaultSeen] = []
    mirror = str(folder / "mirror.h5")
    with load(folder / "model.h5", policy=POLICIES["disk"], mirror=mirror, on_event=told.append) as engine:  # type: ignore[arg-type]
        faulty.fails = lambda name, number: "EIO" if name == "model.h5" else ""
        for _ in range(3):
            assert [each.token_ids for each in engine.generate(PROMPTS, REQUEST).outputs] == expected
    lost = [fault for fault in told if isinstance(fault, FaultSeen) and fault.kind == "mirror"]
    assert len(lost) == weight_copies.LOST_IN_A_ROW


def test_bytes_that_come_back_wrong_alike_are_not_read_a_third_time(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.h5", tmp_path / "model.h5")
    with load(tmp_path / "model.h5", policy=POLICIES["disk"]) as engine:
        part = engine.file.tensors["layers/001/ffn_up/weight"].parts[0]
    content = bytearray((tmp_path / "model.h5").read_bytes())
    content[part.extent.offset] ^= 1
    (tmp_path / "model.h5").write_bytes(content)
    told: list[FaultSeen] = []
    with pytest.raises(WeightFileError, match=rf"dataset {part.dataset} is damaged: .*from byte \d+ on, 2 tries"):
        tokens(tmp_path, "disk", told)
    assert [fault.kind for fault in told] == ["retry", "fault"]
    assert tokens(tmp_path, "disk", told, mirror=folder / "model.h5") == tokens(folder)


def test_a_job_whose_file_is_overwritten_goes_on_from_the_mirror(
    folder: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    shutil.copy(folder / "model.h5", tmp_path / "model.h5")
    told: list[Any] = []
    with load(
        tmp_path / "model.h5", policy=POLICIES["disk"], mirror=folder / "model.h5", on_event=told.append
    ) as engine:
        stream = engine.stream(PROMPTS, REQUEST)
        found: dict[int, list[int]] = {0: [], 1: []}
        for number, token in enumerate(stream):
            if number == 0:
                with (tmp_path / "model.h5").open("r+b") as file:
                    file.write((folder / "other.h5").read_bytes())
            found[token.row].append(token.token_id)
    assert [found[0], found[1]] == expected
    assert any(isinstance(event, FaultSeen) and event.kind == "mirror" for event in told)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.h5", "is .*model.h5 itself: it must be a copy"),
        ("other.h5", r"no copy of .*: dataset \S+ has checksum [0-9a-f]{16}, needed"),
        ("int4.h5", "no copy of .*: how matrices are stored is int4, needed none"),
        ("missing.h5", "cannot open .*missing.h5: No such file"),
    ],
)
def test_a_mirror_that_is_none_is_refused_at_the_start(folder: Path, name: str, said: str, open_files: Any) -> None:
    before = open_files()
    with pytest.raises((StorageError, WeightFileError), match=said):
        load(folder / "model.h5", mirror=folder / name)
    assert open_files() <= before


@pytest.mark.parametrize("left", [0.9, 0.01, 0.0])
def test_a_file_that_is_truncated_before_the_job_is_read_from_the_mirror_and_that_is_told(
    folder: Path, tmp_path: Path, expected: list[list[int]], left: float
) -> None:
    data = (folder / "model.h5").read_bytes()
    (tmp_path / "model.h5").write_bytes(data[: int(left * len(data))])
    notices: list[Any] = []
    with load(tmp_path / "model.h5", mirror=folder / "mirror.h5", on_event=notices.append) as engine:
        assert [output.token_ids for output in engine.generate(PROMPTS, REQUEST).outputs] == expected
    (said,) = [event.text for event in notices if isinstance(event, Notice)]
    assert str(tmp_path / "model.h5") in said
    assert said.endswith(f"; the mirror {folder / 'mirror.h5'} is read in its place")


@pytest.mark.parametrize(
    ("mirror", "said"),
    [("other.h5", "the mirror .*other.h5 is no copy of it"), ("none.h5", "the mirror: cannot open .*none.h5")],
)
def test_nothing_else_is_read_in_place_of_a_truncated_file(
    folder: Path, tmp_path: Path, mirror: str, said: str, open_files: Any
) -> None:
    (tmp_path / "model.h5").write_bytes((folder / "model.h5").read_bytes()[:-1])
    before = open_files()
    with pytest.raises(WeightFileError, match=rf"model.h5 does not end with .*; and {said}"):
        load(tmp_path / "model.h5", mirror=folder / mirror)
    assert open_files() <= before


def test_random_weights_have_no_mirror(folder: Path) -> None:
    with pytest.raises(PolicyError, match="in no file"):
        load(random_file(SPEC), mirror=folder / "model.h5")


def test_a_read_that_fails_leaves_nobody_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread would write into memory that has been given to somebody else meanwhile."""
    monkeypatch.setattr(disk, "CHUNK_BYTES", 4096)
    file, under_way, most = disk.WeightsOnDisk(folder / "model.h5"), [0], [0]
    piece = file._piece

    def slowly(offset: int, into: npt.NDArray[np.uint8]) -> None:
        under_way[0] += 1
        most[0] += 1
        if offset == 0:
            under_way[0] -= 1
            raise StorageError("the first chunk fails")
        threading.Event().wait(0.02)
        piece(offset, into)
        under_way[0] -= 1

    monkeypatch.setattr(file, "_piece", slowly)
    with pytest.raises(StorageError, match="first chunk"):
        file.read(0, np.empty(10 * 4096, np.uint8))
    assert under_way == [0]
    file.close()
