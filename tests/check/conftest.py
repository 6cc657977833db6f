"""For the tests of checked runs: puts `check_kit`, their common code, on the import path, and makes tiny models."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Path of a random model's weight file, made once for each combination."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[object, Path] = {}

    def path(spec: ModelSpec, scheme: str = "none", dtype: str = "float32") -> Path:
        key = (spec, scheme, dtype)
        if key not in made:
            made[key] = folder / f"{len(made)}.h5"
            write_model(made[key], spec, scheme=scheme, dtype=dtype)
        return made[key]

    return path
