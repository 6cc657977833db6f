"""Whatever a lane raises at any of its calls reaches the main thread as one line, and leaves nothing behind."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.engine.session import always
from flexref.errors import FlexrefError, LaneFailed, StorageError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers import weight_copies
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.spill_file import SpillFile

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
ALL_ON_DISK = Policy(Shares(0, 0, 1), Shares(0, 0, 1), Shares(0, 0, 1), rows_per_group=2)
POLICIES = [
    ALL_ON_DISK,
    Policy(Shares.of(0.3, 0.3), Shares.of(0, 0.5), Shares(0, 1, 0), rows_per_group=1, overlap=False),
    Policy(Shares.of(0.5, 0), Shares(0, 0, 1), Shares(0, 0, 1), rows_per_group=2, attention_on="host"),
]
PROMPTS = [[1, 2, 3], [9, 8], [5, 6, 7, 8]]
REQUEST = Request(3, ignore_eos=True)
RAISED = [
    StorageError("the disk says no"),
    OSError(errno.EIO, "Input/output error"),
    MemoryError("no more"),
    ZeroDivisionError("a bug"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
]
CALLS = [(WeightsOnDisk, "read"), (WeightsOnDisk, "read_rows"), (SpillFile, "read"), (SpillFile, "write")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("models") / "model.h5"
    write_model(path, SPEC)
    with load(path, policy=ALL_ON_DISK) as loaded:
        yield loaded


def run(engine: Engine, how: str, policy: Policy) -> Any:
    engine.session.settle = always(policy)
    if how == "score":
        return [row.logprobs.tolist() for row in engine.score([ScoredRow(tuple(row)) for row in PROMPTS]).rows]
    if how == "generate":
        return [output.token_ids for output in engine.generate(PROMPTS, REQUEST).outputs]
    found: dict[int, list[int]] = {}
    for token in engine.stream(PROMPTS, REQUEST):  # lanes are at work while the caller has it
        found.setdefault(token.row, []).append(token.token_id)
    return [found[row] for row in sorted(found)]


@given(
    policy=st.sampled_from(POLICIES),
    how=st.sampled_from(["generate", "stream", "score"]),
    raised=st.sampled_from(RAISED),
    place=st.integers(0, 80),
)
def test_what_a_lane_raises_reaches_the_main_thread(
    engine: Engine, policy: Policy, how: str, raised: BaseException, place: int
) -> None:
    expected = run(engine, how, policy)
    engine.session.weights_for(Policy())  # so that weights are loaded in the job, too
    count, lock = [0], threading.Lock()

    def failing(call: Any) -> Any:
        def wrapped(*given: Any) -> None:
            with lock:
                count[0] += 1
                here = count[0] == place
            if here:
                raise raised
            call(*given)

        return wrapped

    failure: BaseException | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_copies, "WAITS_S", ())
        for part, name in CALLS:
            patch.setattr(part, name, failing(getattr(part, name)))
        patch.setattr(engine.session._disk.source, "waits_s", ())
        try:
            found = run(engine, how, policy)
        except BaseException as error:
            found, failure = expected, error
    assert found == expected
    # The first token row or spilled byte that cannot be read is read once more.
    healed = isinstance(raised, StorageError)
    assert (failure is not None) == (0 < place <= count[0]) or (healed and failure is None)
    foreseen = isinstance(raised, FlexrefError | OSError | MemoryError)
    if failure is not None and not foreseen:
        assert isinstance(failure, LaneFailed)
        assert type(raised).__name__ in str(failure)
        assert "\n" not in str(failure)
    elif failure is not None:
        assert isinstance(failure, FlexrefError if healed else type(raised))
    assert not engine.session.mover.abandoned
    assert not engine.session.mover.board.now()
    assert all("cache" not in holder for arena in engine.session.arenas.values() for holder in arena.holders)
    assert run(engine, how, policy) == expected


def exit_here() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwritev"])
def test_a_disk_that_does_not_take_what_is_spilled_ends_the_job_in_one_line(
    engine: Engine, number: int, call: str, open_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(engine, "generate", ALL_ON_DISK)
    before = open_files()

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=r"^(cannot (write|reserve)|the disk of .* is full)[^\n]*$"):
        run(engine, "generate", ALL_ON_DISK)
    monkeypatch.undo()
    assert open_files() <= before
    assert run(engine, "generate", ALL_ON_DISK) == expected


def test_a_folder_that_vanishes_is_made_again_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    spills = tmp_path / "spills"
    with load(tmp_path / "model.h5", policy=ALL_ON_DISK, disk_dir=spills) as engine:
        expected = run(engine, "generate", ALL_ON_DISK)
        shutil.rmtree(spills)
        assert run(engine, "generate", ALL_ON_DISK) == expected
        shutil.rmtree(spills)
        spills.write_text("a file in its place")
        with pytest.raises(StorageError, match=r"cannot write in .*spills: it is no folder"):
            run(engine, "generate", ALL_ON_DISK)
        spills.unlink()

        def full(*_: Any) -> None:
            spills.rmdir()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match=r"is full: .* are needed, an unknown number .* are free"):
            run(engine, "generate", ALL_ON_DISK)


def test_closing_while_a_lane_fails_ends_every_thread(
    tmp_path: Path, open_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    before = open_files()
    threads = set(threading.enumerate())
    policy = Policy(Shares(0, 0, 1), Shares(0, 0, 1), rows_per_group=2)
    write, count, closing = SpillFile.write, [0], threading.Event()
    engine = load(tmp_path / "model.h5", policy=policy)

    def late(*given: Any) -> None:
        count[0] += 1
        if count[0] == 2 * SPEC.layers:  # the last one of the second pass
            closing.wait(10)
            exit_here()
        write(*given)

    monkeypatch.setattr(SpillFile, "write", late)
    stream = engine.stream(PROMPTS[:1], REQUEST)
    assert len([next(stream), next(stream)]) == 2
    threading.Timer(0.05, closing.set).start()
    with pytest.raises(LaneFailed):
        engine.close()  # it ends the stream, and so finds what its lanes have run into
    assert {thread for thread in threading.enumerate() if thread.name.startswith("flexref")} <= threads
    assert open_files() <= before
