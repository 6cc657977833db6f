"""The image of a file's metadata when Ctrl-C comes while HDF5 calls Python: it acts afterwards, and nothing is left."""

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.storage import metadata_image
from flexref.storage.held_back import held_back
from flexref.storage.metadata_image import MetadataImage
from flexref.storage.schema import FileHeader, PartSpec

HEADER = FileHeader.of(ModelSpec("tiny", 30, 8, 8, 8, 1, 2, 8), "none", None, "float32")
PARTS = [PartSpec("a/b", (3, 4), np.dtype(np.float32)), PartSpec("c", (5,), np.dtype(np.float32))]


@pytest.fixture
def pressed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ctrl-C comes in every call of the methods that are named in this list."""
    names: list[str] = []

    def pressing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if method.__name__ in names:
                os.kill(os.getpid(), signal.SIGINT)
            return method(*arguments)

        return call

    for name in ("seek", "tell", "truncate", "flush", "write", "readinto"):
        monkeypatch.setattr(metadata_image._Memory, name, pressing(getattr(metadata_image._Memory, name)))
    return names


@pytest.mark.parametrize("name", ["truncate", "flush", "write", "readinto"])
def test_ctrl_c_while_an_image_is_made_acts_when_it_is(pressed: list[str], name: str) -> None:
    pressed.append(name)
    with pytest.raises(KeyboardInterrupt):
        MetadataImage(HEADER, PARTS)
    gc.collect()
    pressed.clear()
    with pytest.raises(KeyboardInterrupt):  # what is left of the first one would say so now
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", ["set_checksum", "finish", "close"])
def test_ctrl_c_while_an_image_is_used_acts_when_the_step_is_done(pressed: list[str], step: str) -> None:
    image = MetadataImage(HEADER, PARTS)
    for part in PARTS:
        image.set_checksum(part.dataset, 7)
    pressed += ["truncate", "flush", "write", "readinto"]
    arguments = ("c", 8) if step == "set_checksum" else ()
    try:
        getattr(image, step)(*arguments)
    except KeyboardInterrupt:
        pressed.clear()
    else:
        assert step == "set_checksum", "HDF5 called nothing"
        pressed.clear()
    image.close()


def test_what_is_held_back_acts_once_for_each_and_as_it_would_have() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            with held_back():
                os.kill(os.getpid(), signal.SIGINT)
            assert seen == []
        assert seen == [signal.SIGINT] * 2
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
