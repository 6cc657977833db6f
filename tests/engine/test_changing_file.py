"""A weight file that changes while a job reads it: the job ends with one line, never with tokens of another model."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.engine.scoring import Listener, ScoredRow
from flexref.errors import StorageError
from flexref.loading import load
from flexref.policy import Policy, Shares

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
ON_DISK = Policy(Shares(0, 0, 1), rows_per_group=1)
RESIDENT = Policy(rows_per_group=1)
REQUEST = Request(8, ignore_eos=True)
SAID = r"model\.h5 was changed while it was read: .*; what was computed from it is void, run again"


@pytest.fixture
def path(model_file: Any, tmp_path: Path) -> Path:
    return Path(shutil.copy(model_file(SPEC), tmp_path / "model.h5"))


@pytest.fixture
def other(model_file: Any) -> Path:
    """Another model of the same architecture and size."""
    return Path(model_file(SPEC, seed=5))


def overwrite(path: Path, other: Path) -> None:
    """The same file, other bytes; it is at no time shorter, which a read under way would find out by itself."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def overwrite_in_disguise(path: Path, other: Path) -> None:
    """The same with the older time of its last change."""
    before = path.stat()
    overwrite(path, other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [overwrite, overwrite_in_disguise])
def test_a_file_overwritten_during_a_generation_ends_it(path: Path, other: Path, change: Any) -> None:
    with load(path, policy=ON_DISK) as engine:
        stream = engine.stream([[5, 6]], REQUEST)
        first = next(stream)
        change(path, other)
        with pytest.raises(StorageError, match=SAID):
            list(stream)
        with pytest.raises(StorageError, match=SAID):  # nor is it read by the next job
            engine.generate([[5, 6]], REQUEST)
    assert first.row == 0


def test_a_file_overwritten_between_two_blocks_that_are_scored_ends_the_job(path: Path, other: Path) -> None:
    rows = [ScoredRow((5, 6, 7)), ScoredRow((7, 6, 5)), ScoredRow((1, 2, 3))]
    with load(path, policy=ON_DISK) as engine:
        listener = Listener(on_rows=lambda count: overwrite(path, other))
        with pytest.raises(StorageError, match=SAID):
            engine.score(rows, listener=listener)


@pytest.mark.parametrize("policy", [ON_DISK, RESIDENT])
def test_a_file_that_is_replaced_as_a_whole_is_another_file(path: Path, other: Path, policy: Policy) -> None:
    """Who has the older one open goes on with it, to the bit."""
    with load(path, policy=policy) as engine:
        expected = engine.generate([[5, 6]], REQUEST).outputs[0].token_ids
        stream = engine.stream([[5, 6]], REQUEST)
        found = [next(stream).token_id]
        shutil.copy(other, path.with_name("new.h5"))
        os.replace(path.with_name("new.h5"), path)
        found += [token.token_id for token in stream]
    assert found == expected


def test_what_is_at_home_in_memory_is_not_read_again(path: Path, other: Path) -> None:
    with load(path, policy=RESIDENT) as engine:
        expected = engine.generate([[5, 6]], REQUEST).outputs[0].token_ids
        overwrite(path, other)
        assert engine.generate([[5, 6]], REQUEST).outputs[0].token_ids == expected
