"""A row has the same bits in any company: tokens and logits, on every port that promises it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own

STORED = st.sampled_from([("none", "float32"), ("none", "float16"), ("int4", "float16"), ("int8", "float32")])

Logits = dict[int, list[npt.NDArray[np.float32]]]


def generated(
    path: str, backend: str, prompts: list[list[int]], policy: Policy, request: Request
) -> tuple[Any, Logits]:
    """Token ids by row, and the logits of every row's steps in order."""
    logits: Logits = {}

    def keep(rows: npt.NDArray[np.int64], _: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        for row, of_row in zip(rows.tolist(), values, strict=True):
            logits.setdefault(row, []).append(of_row.copy())

    if backend != "numpy":  # elsewhere attention on the host is another place of computing, or there is none
        policy = policy.changed(attention_on="device", host_attention_share=1.0)
    with load(path, policy=policy, backend=backend) as engine:
        outputs = engine.generate(prompts, request, on_logits=keep).outputs
    return [output.token_ids for output in outputs], logits


@st.composite
def companies(draw: st.DrawFn) -> tuple[ModelSpec, list[list[int]], list[int]]:
    """A model, prompts of ragged lengths that cross the edges of tiles and chunks, and which of them run again."""
    spec = draw(own.specs(positions=160))
    token = st.integers(0, spec.vocabulary - 1)
    lengths = draw(st.lists(st.sampled_from((1, 2, 5, 63, 64, 65, 130)), min_size=1, max_size=6))
    prompts = [draw(st.lists(token, min_size=length, max_size=length)) for length in lengths]
    return spec, prompts, draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=7))


@st.composite
def cutting(draw: st.DrawFn) -> Policy:
    """Prompts are read whole, or in pieces that end inside a tile or chunk of attention, or at its edge."""
    return draw(own.policies()).changed(prompt_chunk_tokens=draw(st.sampled_from((None, None, 1, 7, 64, 65))))


@settings(max_examples=settings.default.max_examples // 3)  # each example is two whole jobs
@given(
    case=companies(),
    stored=STORED,
    policies=st.tuples(cutting(), cutting()),
    new_tokens=st.integers(1, 4),
)
def test_a_row_has_the_same_bits_in_any_company(
    model_file: Any,
    invariant_port: str,
    case: tuple[ModelSpec, list[list[int]], list[int]],
    stored: tuple[str, str],
    policies: tuple[Policy, Policy],
    new_tokens: int,
) -> None:
    spec, prompts, again = case
    path, request = model_file(spec, *stored), Request(new_tokens, ignore_eos=True)
    this, other = policies
    other = other.changed(cache_scheme=this.cache_scheme, cache_group_size=this.cache_group_size)
    tokens, logits = generated(path, invariant_port, prompts, this, request)
    other_tokens, other_logits = generated(path, invariant_port, [prompts[row] for row in again], other, request)
    for place, row in enumerate(again):
        assert other_tokens[place] == tokens[row]
        np.testing.assert_array_equal(other_logits[place], logits[row], err_msg=f"row {row} at place {place}")


@settings(max_examples=settings.default.max_examples // 3)  # each example is two whole jobs
@given(case=companies(), stored=STORED, policy=cutting())
def test_a_row_begun_again_from_its_tokens_goes_on_with_the_same_bits(
    model_file: Any,
    invariant_port: str,
    case: tuple[ModelSpec, list[list[int]], list[int]],
    stored: tuple[str, str],
    policy: Policy,
) -> None:
    spec, prompts, _ = case
    path = model_file(spec, *stored)
    tokens, logits = generated(path, invariant_port, prompts, policy, Request(6, ignore_eos=True))
    begun = [prompt + row[:3] for prompt, row in zip(prompts, tokens, strict=True)]
    later, later_logits = generated(path, invariant_port, begun, policy, Request(3, ignore_eos=True))
    for row, of_row in enumerate(tokens):
        assert later[row] == of_row[3:]
        np.testing.assert_array_equal(later_logits[row], logits[row][3:], err_msg=f"row {row}, begun again")
