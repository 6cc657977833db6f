"""An engine in a forked process, and one that nobody closed: one says so and never hangs, the other leaks nothing."""

import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.errors import EngineError, StorageError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers.spill_file import SpillFile

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
POLICY = Policy(Shares(0, 1, 0), Shares(0, 0, 1), Shares(0, 1, 0), rows_per_group=2)
REQUEST = Request(6, ignore_eos=True)


def loaded(folder: Path) -> Engine:
    write_model(folder / "model.h5", SPEC)
    return load(folder / "model.h5", policy=POLICY, disk_dir=folder)


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a forked child that runs `work`: 0, or 9 if it raised EngineError; killed after 10 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads: they are the test
        child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            work()
        except EngineError as error:
            os._exit(9 if "forked" in str(error) else 8)
        except BaseException:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_used_engine_refuses_to_work_in_a_forked_child_and_goes_on_in_its_own_process(tmp_path: Path) -> None:
    with loaded(tmp_path) as engine:
        before = engine.generate([[1, 2, 3]], REQUEST)
        assert in_child(lambda: engine.generate([[1, 2, 3]], REQUEST) and None) == 9
        assert in_child(engine.close) == 0
        assert engine.generate([[1, 2, 3]], REQUEST).outputs[0].token_ids == before.outputs[0].token_ids


def test_a_stream_that_was_under_way_ends_in_a_forked_child(tmp_path: Path) -> None:
    with loaded(tmp_path) as engine:
        stream = engine.stream([[1, 2, 3]], REQUEST)
        next(stream)
        assert in_child(lambda: next(stream) and None) == 9
        assert in_child(stream.close) == 0  # type: ignore[attr-defined]
        assert len(list(stream)) == 5


def test_an_engine_that_is_dropped_is_closed_and_leaves_neither_descriptors_nor_threads(
    tmp_path: Path, open_files: Any
) -> None:
    gc.collect()
    files, threads = open_files(), set(threading.enumerate())
    engine = loaded(tmp_path)
    engine.generate([[1, 2, 3]], REQUEST)
    assert set(threading.enumerate()) - threads
    kept = [engine]
    del engine
    with pytest.warns(ResourceWarning, match="dropped without close"):
        kept.clear()  # the last reference
    # What an earlier test left may have ended meanwhile.
    assert set(threading.enumerate()) <= threads
    assert open_files() <= files


def test_an_engine_that_was_closed_is_dropped_without_a_word(tmp_path: Path) -> None:
    engine = loaded(tmp_path)
    engine.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del engine
        gc.collect()


def test_a_write_that_takes_no_byte_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = SpillFile(tmp_path, 4096)
    monkeypatch.setattr(os, "pwritev", lambda *arguments: 0)
    signal.alarm(10)  # a loop would end the run here
    try:
        with pytest.raises(StorageError, match="nothing more can be written"):
            spill.write(0, np.zeros(4096, np.uint8))
    finally:
        signal.alarm(0)
        spill.close()
