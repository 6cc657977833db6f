"""For tests of batch jobs: what they share lies beside them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexref.engine.engine import Engine
from flexref.loading import load

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The built-in model's."""
    with load("demo") as loaded:
        yield loaded
