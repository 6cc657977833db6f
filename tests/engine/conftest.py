"""Shared by the engine's tests: tiny weight files, one per architecture, scheme and type, and a port that counts."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend

from flexref.spec import ModelSpec
from flexref.testing.models import write_model

ModelFile = Callable[..., str]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """Path of a random model's weight file, made once for each combination."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[Any, str] = {}

    def path(spec: ModelSpec, scheme: str = "none", dtype: str = "float32", seed: int = 0) -> str:
        key = (spec, scheme, dtype, seed)
        if key not in made:
            made[key] = str(folder / f"{len(made)}.h5")
            write_model(Path(made[key]), spec, scheme=scheme, dtype=dtype, seed=seed)
        return made[key]

    return path


class CountingBackend(NumpyBackend):
    """The numpy port with an account of its own: bytes that are really allocated now, and the most there ever were."""

    def __init__(self, scratch_bytes: int = 1 << 16) -> None:
        super().__init__(scratch_bytes)
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._tiers: dict[int, tuple[str, int]] = {}

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        self._tiers[id(buffer)] = (tier, buffer.nbytes)
        self.live[tier] += buffer.nbytes
        self.peak[tier] = max(self.peak[tier], self.live[tier])
        return buffer

    def release(self, buffer: Any) -> None:
        tier, nbytes = self._tiers.pop(id(buffer))
        self.live[tier] -= nbytes
        super().release(buffer)


@pytest.fixture(scope="session")
def counting() -> type[CountingBackend]:
    """The class of ports that count."""
    return CountingBackend
