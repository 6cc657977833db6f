"""How often matrices are expanded: once for a block where they may be kept, else once a pass or with every product."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.units import GIB

SPEC = ModelSpec("small", 50, 48, 16, 16, 3, 2, 32)
PROMPTS = [[5, 6, 7], [8, 9], [4]]
PASSES = 6
MATRICES = 4 * SPEC.layers + 1
"""Those of the layers, and the head."""


class CountingExpansions(NumpyBackend):
    """Counts the matrices that are expanded to a place that outlasts a product."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.expanded: Counter[tuple[int, ...]] = Counter()

    def expand(self, w: Any, out: Any) -> Any:
        if len(out.shape) == 2 and out.shape[0] > len(PROMPTS) * 3:
            self.expanded[out.shape] += 1
        return super().expand(w, out)


def logits_of(path: str, policy: Policy, **options: Any) -> tuple[list[Any], Any, CountingExpansions]:
    port, found = CountingExpansions(), list[Any]()
    with load(path, policy=policy, backend=port, **options) as engine:
        request = Request(PASSES, ignore_eos=True)
        stats = engine.generate(PROMPTS, request, on_logits=lambda rows, steps, logits: found.append(logits)).stats
    return found, stats, port


@pytest.mark.parametrize(("scheme", "dtype"), [("none", "float16"), ("int4", "float32"), ("int8", "float16")])
@pytest.mark.parametrize("groups", [1, 3])
def test_where_there_is_room_weights_on_the_device_are_expanded_once_for_a_block(
    model_file: Any, scheme: str, dtype: str, groups: int
) -> None:
    path = model_file(SPEC, scheme, dtype)
    policy = Policy(rows_per_group=3 // groups, groups_per_block=groups)
    kept, stats, port = logits_of(path, policy)
    # The head is stored as a type, so with float32 there is nothing to be expanded in it.
    assert port.expanded.total() == MATRICES - (dtype == "float32")
    tight = (stats.peak_bytes["device"] - 1) / GIB
    seldom, less, port = logits_of(path, policy, device_mem_gib=tight)
    assert less.peak_bytes["device"] < stats.peak_bytes["device"]
    assert port.expanded.total() == (0 if groups == 1 else PASSES * (MATRICES - (dtype == "float32")))
    for ours, theirs in zip(kept, seldom, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_pass_through_are_not_kept(model_file: Any) -> None:
    policy = Policy(Shares(0, 1, 0), rows_per_group=3)
    _, _, port = logits_of(model_file(SPEC, "none", "float16"), policy)
    assert port.expanded.total() == 0


def test_of_a_single_pass_nothing_is_kept(model_file: Any) -> None:
    port = CountingExpansions()
    with load(model_file(SPEC, "none", "float16"), policy=Policy(rows_per_group=3), backend=port) as engine:
        engine.generate(PROMPTS, Request(1, ignore_eos=True))
    assert port.expanded.total() == 0
