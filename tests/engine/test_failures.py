"""What fails, fails every time and leaves nothing behind: damage is found again, an old error is not raised again."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.errors import CapacityError, PolicyError, StorageError, WeightFileError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import open_weight_file
from flexref.tiers import weight_copies
from flexref.tiers.disk import WeightsOnDisk

SPEC = ModelSpec("small", 50, 48, 16, 16, 4, 2, 32)
ON_DISK = Policy(weights=Shares(0, 0, 1))
REQUEST = Request(4, ignore_eos=True)


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is not tried again, since that is another test's matter (`test_mirror`)."""
    monkeypatch.setattr(weight_copies, "WAITS_S", ())


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_model(tmp_path / "model.h5", SPEC)
    return str(tmp_path / "model.h5")


def test_damage_is_found_by_every_call_and_not_by_the_first_alone(path: str) -> None:
    part = open_weight_file(path).tensors["layers/003/ffn_up/weight"].parts[0]
    with open(path, "r+b") as file:
        file.seek(part.extent.offset)
        file.write(np.full(part.extent.nbytes // 4, 3.0, "<f4").tobytes())
    with load(path, policy=ON_DISK) as engine:
        for _ in range(3):
            with pytest.raises(WeightFileError, match="layers/003/ffn_up/weight"):
                engine.generate([[1, 2, 3]], REQUEST)


def test_a_failure_of_the_past_does_not_fail_the_next_call(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = WeightsOnDisk.read, [StorageError("the disk stuttered")]

    def stutter(self: WeightsOnDisk, offset: int, into: npt.NDArray[np.uint8], arrived: Any = None) -> None:
        if failures:
            raise failures.pop()
        read(self, offset, into, arrived)

    monkeypatch.setattr(WeightsOnDisk, "read", stutter)
    with load(path, policy=Policy()) as engine:
        with pytest.raises(StorageError, match="stuttered"):
            engine.generate([[1, 2, 3]], REQUEST)
        assert len(engine.generate([[1, 2, 3]], REQUEST).outputs[0].token_ids) == 4


def test_closing_twice_closes_no_file_of_others(path: str) -> None:
    file = WeightsOnDisk(path)
    file.close()
    other = os.open(path, os.O_RDONLY)
    file.close()
    os.close(other)  # EBADF, if it was closed


def test_a_policy_that_is_refused_opens_nothing(path: str, open_files: Any) -> None:
    before = open_files()
    for _ in range(3):
        with pytest.raises(PolicyError, match="made for int4"):
            load(path, policy=Policy(weights_scheme="int4"))
    assert open_files() <= before


def test_a_tier_without_room_for_weights_is_left_as_it_was(path: str) -> None:
    halves = Policy(weights=Shares(0.5, 0, 0.5))
    with load(path, policy=halves, device_mem_gib=70_000 / (1 << 30), scratch_bytes=1 << 16) as engine:
        arenas: dict[Any, Any] = engine.session.arenas
        before = {tier: arena.held_bytes for tier, arena in arenas.items()}
        for _ in range(2):
            with pytest.raises(CapacityError, match="device memory is too small"):
                engine.session.weights_for(halves)
            assert {tier: arena.held_bytes for tier, arena in arenas.items()} == before
