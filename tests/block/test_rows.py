"""A row's logits do not depend on how its tokens were divided into passes, nor on its neighbours, up to rounding.

Both sides of every comparison must lie within the bound that the weights and the arithmetic give for exact logits.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.forward import model_logits_bound
from flexref.check.models import stored_tensors
from flexref.check.tolerances import assert_within
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own

Logits = npt.NDArray[np.float32]
NEW_TOKENS = 4


def steps(path: str, rows: list[list[int]], policy: Policy) -> tuple[list[list[int]], dict[tuple[int, int], Logits]]:
    """Greedy token ids of every row, and the logits of every (row, step)."""
    logits: dict[tuple[int, int], Logits] = {}

    def keep(numbers: npt.NDArray[np.int64], taken: npt.NDArray[np.int64], values: Logits) -> None:
        keys = zip(numbers.tolist(), taken.tolist(), strict=True)
        logits.update(dict(zip(keys, values, strict=True)))

    with load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        outputs = engine.generate(rows, Request(NEW_TOKENS, ignore_eos=True), on_logits=keep).outputs
    return [output.token_ids for output in outputs], logits


def check(spec: ModelSpec, path: str, row: list[int], found: Logits, what: str) -> None:
    """`found` are the logits after the last token of `row`."""
    exact, bound = model_logits_bound(spec, stored_tensors(Path(path)), row)
    assert_within(found, exact[-1], bound[-1], what)


@settings(max_examples=settings.default.max_examples // 2)  # each example is several whole jobs
@given(own.specs(layers=2), st.sampled_from(["none", "int4"]), own.policies(cache_schemes=("none",)), st.data())
def test_prefill_of_n_is_prefill_of_k_and_decodes_whoever_the_neighbours_are(
    model_file: Any, spec: ModelSpec, scheme: str, policy: Policy, data: st.DataObject
) -> None:
    path = model_file(spec, scheme, "float32")
    rows = data.draw(own.token_rows(spec.vocabulary, rows=3, longest=6))
    generated, logits = steps(path, rows, policy)
    row = data.draw(st.integers(0, len(rows) - 1))
    step = data.draw(st.integers(0, NEW_TOKENS - 1))
    sequence = [*rows[row], *generated[row][:step]]
    check(spec, path, sequence, logits[row, step], f"row {row}, decoded in step {step}")
    _, alone = steps(path, [sequence], policy)
    check(spec, path, sequence, alone[0, 0], f"row {row}, prefilled alone")


@pytest.mark.parametrize("overlap", [False, True])
def test_a_quantized_cache_is_read_alike_by_prefill_and_decode(model_file: Any, overlap: bool) -> None:
    spec = ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64)
    path, policy = model_file(spec), Policy(cache_scheme="int4", cache_group_size=16, overlap=overlap)
    generated, logits = steps(path, [[5, 6, 7, 8]], policy)
    _, again = steps(path, [[5, 6, 7, 8, *generated[0][:2]]], policy)
    _, plain = steps(path, [[5, 6, 7, 8, *generated[0][:2]]], policy.changed(cache_scheme="none"))
    # Rounding before quantization may move a value across the edge of a code, which no bound on rounding covers; but
    # if prefill read K and V before they were quantized, it would be as far from the decode as no quantization is.
    between = np.abs(again[0, 0] - logits[0, 2]).max()
    assert between < 0.1 * np.abs(plain[0, 0] - logits[0, 2]).max()
