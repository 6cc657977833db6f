"""A simulated job whose rows share prefixes: bytes over links and peaks are those of a real run."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.rows import RowLengths
from flexref.engine.generation import GenerationJob
from flexref.engine.outcomes import generation
from flexref.engine.request import Request, RowRequest
from flexref.engine.scoring import ScoredRow
from flexref.loading import load
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.testing import strategies as own
from flexref.units import Tier

SCRATCH_BYTES = 1 << 16
SHARED = ModelSpec("shared", 50, 200, 16, 16, 2, 2, 32)
BEGUN = st.sampled_from((0, 64, 128))


def like_numpy() -> Machine:
    """A machine with the capabilities of the numpy port of this test."""
    machine = plain_machine(asynchronous=False)
    port = machine.port
    facts = "numpy", "float32", port.asynchronous, port.overlaps_copies, port.attends_on_host, SCRATCH_BYTES, 0
    return machine.changed(port=type(port)(*facts))


def without_zeros(table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {link: {kind: nbytes for kind, nbytes in kinds.items() if nbytes} for link, kinds in table.items()}


@given(
    policy=own.policies(),
    rows=st.lists(st.tuples(BEGUN, st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=8),
    chunk=st.none() | st.sampled_from((7, 64)),
    scores=st.booleans(),
)
def test_bytes_and_peaks_of_rows_that_share_prefixes_are_those_of_a_real_run(
    model_file: Any, policy: Policy, rows: list[tuple[int, int, int]], chunk: int | None, scores: bool
) -> None:
    """A row has so many tokens of one of two beginnings and then some of its own, of which no two rows' are alike."""
    policy = policy.changed(prompt_chunk_tokens=chunk, weights=Shares())
    begun = {64: [1] * 64, 128: [2] * 128, 0: []}
    prompts = [[*begun[shared], *[3 + row] * tail] for row, (shared, tail, _) in enumerate(rows)]
    with load(model_file(SHARED), policy=policy, scratch_bytes=SCRATCH_BYTES) as engine:
        if scores:
            stats = engine.score([ScoredRow((*prompt, 1), len(prompt)) for prompt in prompts]).stats
        else:
            asked = [
                RowRequest(prompt, Request(new, ignore_eos=True))
                for prompt, (_, _, new) in zip(prompts, rows, strict=True)
            ]
            job = GenerationJob(engine.session, asked, policy, all_at_once=True)
            stats = generation(job).stats
        file = engine.file
    several = {shared for shared in (64, 128) if sum(row[0] == shared for row in rows) > 1}
    lengths = [
        RowLengths(
            shared + tail, 1 if scores else new, int(scores), *((shared, shared) if shared in several else (0, 0))
        )
        for shared, tail, new in rows
    ]
    found = simulate(file, like_numpy(), policy, lengths, dict.fromkeys(Tier))
    assert found.peak_bytes == stats.peak_bytes
    assert found.link_bytes == without_zeros(stats.link_bytes)
    assert (found.rows, found.generated_tokens) == (stats.rows, stats.generated_tokens)
