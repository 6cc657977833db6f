"""What the tests of checkpoint files share: how a damaged file of any format must be met."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from flexref.errors import FlexrefError
from flexref.storage.checkpoint.source import FLOAT_TYPES, SourceTensor

Listing = Callable[[Path], Iterable[SourceTensor]]


def assert_damage_is_met(data: Any, path: Path, listing: Listing) -> None:
    """Change some bytes of the file, maybe cut it: it is refused in one line, or read within its bounds."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        for tensor in listing(path):
            if tensor.dtype in FLOAT_TYPES and tensor.shape:
                assert tensor.read_rows(0, tensor.shape[0]).shape == tensor.shape
    except FlexrefError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- either outcome is right


@pytest.fixture(scope="session")
def damage_is_met() -> Callable[[Any, Path, Listing], None]:
    """The check above, for tests that cannot import this file."""
    return assert_damage_is_met
