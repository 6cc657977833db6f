"""A spec refuses what no model can be."""

from dataclasses import replace

import pytest

from flexref.architecture.spec import LARGEST_SIZES, ModelSpec
from flexref.errors import CheckpointError

SPEC = ModelSpec("tiny", 50, 20, 12, 12, 2, 3, 48)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 0}, "width must be an integer from 1"),
        ({"layers": LARGEST_SIZES["layers"] + 1}, "layers must be an integer from 1 to 4096"),
        ({"heads": 5}, "must be a multiple of its 5 attention heads"),
        ({"activation": "mish"}, "unknown activation 'mish'"),
        ({"activation": None}, "activation must be text"),
        ({"bias": 1}, "bias must be true or false"),
        ({"bos_token_id": "2"}, "token ids must be integers"),
        ({"eos_token_ids": (-2,)}, "token ids must be integers"),
        ({"pre_norm": False}, "a final norm exists only where norms precede their blocks"),
    ],
)
def test_a_spec_checks_itself(changes: dict, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        replace(SPEC, **changes)
