"""Small arrays on the device: more of them than there are places take turns, and what cannot is refused in one line."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend, device
from flexref_cupy.device import SMALL_ALIGNMENT_BYTES, SmallArrays

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.request import Request, RowRequest
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy, Shares

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

MIXED = Policy(cache=Shares(0.5, 0.5, 0), rows_per_group=2, groups_per_block=6)
"""Every group has a row whose home is the device and one in a slot: their distances differ from layer to layer."""
ROWS = [[row, row + 1, row + 2] for row in range(12)]


def tokens(path: Path) -> Any:
    port = CupyBackend(cuda=EmulatedCuda(capability=(9, 0), late=True))
    with load(path, policy=MIXED, backend=port) as engine:
        return [output.token_ids for output in engine.generate(ROWS, Request(4, ignore_eos=True)).outputs]


def test_groups_of_mixed_homes_may_have_more_distances_than_there_are_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("small", 50, 48, 16, 16, 6, 2, 32), dtype="float16")
    expected = tokens(path)
    monkeypatch.setattr(device, "SMALL_BYTES", 20 * SMALL_ALIGNMENT_BYTES)  # six groups, six layers, two slots
    assert tokens(path) == expected
    monkeypatch.setattr(device, "SMALL_BYTES", 4 * SMALL_ALIGNMENT_BYTES)  # not even one per group
    with pytest.raises(CapacityError, match="small arrays") as error:
        tokens(path)
    assert "fewer groups" in str(error.value)


@pytest.mark.parametrize("places", [12, 16])
def test_recordings_and_what_may_be_recorded_take_no_places_that_a_job_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    """Every pass has a row less than the one before it, so that its handle of lengths comes once."""
    path, found = tmp_path / "model.h5", []
    write_model(path, ModelSpec("small", 50, 48, 16, 16, 2, 2, 32), dtype="float16")
    monkeypatch.setattr(device, "SMALL_BYTES", places * SMALL_ALIGNMENT_BYTES)
    for graphs in (False, True):
        port = CupyBackend(cuda=EmulatedCuda(capability=(9, 0), late=True))
        asked = [RowRequest([row, row + 1], Request(row + 2, ignore_eos=True)) for row in range(20)]
        with load(path, policy=Policy(rows_per_group=20), backend=port, graphs=graphs) as engine:
            found.append({result.number: result.output and result.output.token_ids for result in engine.run(asked)})
    assert found[0] == found[1]
    assert sum(map(len, found[0].values())) == sum(range(2, 22))


def test_a_place_is_refused_only_when_nothing_makes_room() -> None:
    cuda = EmulatedCuda()
    small = SmallArrays(cuda, cuda.allocate(1 << 12), 1 << 12)
    held = [small.put(np.arange(8, dtype=np.int64)) for _ in range((1 << 12) // SMALL_ALIGNMENT_BYTES)]
    with pytest.raises(CapacityError):
        small.put(np.arange(8, dtype=np.int64))
    small.make_room.append(held.clear)
    assert small.put(np.arange(8, dtype=np.int64)).address == small.address
    gc.collect()
