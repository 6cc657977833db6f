"""The port contract: every clause, which of them a port must pass, and how to check them; it names no port.

A clause is a plain function `clause(backend, data)`: it draws operands from hypothesis' `data`, calls the port and
raises if the port breaks the law in the clause's docstring. A test of a port is one parametrized hypothesis test over
`clauses_for(backend.caps)`; `tests/conformance/test_contract.py` is one, README.md shows it.
"""

from collections.abc import Callable, Mapping

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flexref.backend.capabilities import Capabilities
from flexref.backend.protocol import Backend
from flexref.testing.clauses import (
    attention,
    cache,
    lanes,
    memory,
    moves,
    pointwise,
    prefixes,
    products,
    recordings,
    sampling,
)

Clause = Callable[[Backend, st.DataObject], None]

STRUCTURE: tuple[Clause, ...] = (
    memory.it_describes_itself,
    memory.allocated_memory_has_the_asked_size,
    memory.free_memory_is_reported,
    memory.views_have_their_shape,
    memory.a_view_beyond_its_buffer_is_refused,
    memory.results_fit_the_workspace_or_are_refused,
    memory.frames_give_back,
    memory.results_take_from_the_workspace,
    memory.the_workspace_remembers_its_peak,
    lanes.tickets_are_waited_for,
    lanes.times_are_in_order,
    products.row_operators_keep_their_shapes,
    products.products_have_their_shapes,
    pointwise.norms_and_activations_have_their_shapes,
    cache.cache_operators_keep_their_shapes,
    sampling.sampling_gives_a_token_per_row,
)
"""What every port must pass, one that only counts too."""

VALUES: tuple[Clause, ...] = (
    memory.host_memory_is_aligned_and_writable,
    memory.uploaded_values_come_back,
    memory.views_share_memory,
    memory.assign_copies_between_tiers,
    memory.live_results_never_overlap,
    lanes.times_are_those_of_the_host,
    moves.moves_copy_exactly_their_bytes,
    moves.moves_copy_exactly_their_parts,
    lanes.a_lane_keeps_its_order,
    lanes.a_lane_waits_for_other_lanes,
    lanes.failures_reach_all_who_wait,
    lanes.operators_wait_for_lanes,
    products.gather_takes_the_named_rows,
    products.gather_tile_by_tile_is_one_gather,
    products.add_rows_adds_the_named_rows,
    products.linear_is_the_product,
    products.linear_adds_to_its_result,
    products.expand_is_the_matrix,
    products.linear_of_expanded_weights_has_the_same_bits,
    products.products_do_not_depend_on_other_rows,
    products.products_repeat_their_bits,
    pointwise.layer_norm_is_the_norm,
    pointwise.activations_are_their_functions,
    cache.append_writes_the_records,
    cache.append_quantizes_by_the_law,
    cache.appends_do_not_depend_on_other_rows,
    attention.attend_is_causal_attention,
    attention.a_prefill_is_a_shorter_one_and_decodes,
    attention.later_tokens_have_no_effect,
    attention.stale_records_have_no_effect,
    attention.attention_does_not_depend_on_other_rows,
    attention.rows_in_one_buffer_are_as_good_as_rows_apart,
    attention.attention_repeats_its_bits,
    sampling.greedy_takes_the_lowest_of_the_best,
    sampling.logits_that_are_not_finite_are_refused,
    sampling.sampling_inverts_the_distribution,
    sampling.equal_logits_have_equal_shares,
    sampling.samples_do_not_depend_on_other_rows,
)
"""What a port that computes (`caps.computes`) must pass too."""

OVERLAP: tuple[Clause, ...] = (lanes.lanes_do_not_hold_each_other_up,)
"""What a port whose lanes run beside its operators (`caps.overlaps_copies`) must pass too."""

HOST_ATTENTION: tuple[Clause, ...] = (
    cache.append_works_on_host_memory,
    attention.attend_works_on_host_memory,
    attention.host_attention_runs_beside_operators,
)
"""What a port that attends on the host (`caps.attends_on_host`), and computes, must pass too."""

ROW_INVARIANCE: tuple[Clause, ...] = (
    products.a_row_of_a_product_is_its_own,
    pointwise.a_row_of_a_norm_is_its_own,
    attention.a_row_is_read_in_any_pieces,
)
"""What a port whose rows have bits of their own (`caps.row_invariant`), and computes, must pass too."""

SHARED_PREFIXES: tuple[Clause, ...] = (prefixes.a_shared_prefix_is_as_good_as_a_copy,)
"""What a port that takes prefixes (`caps.shares_prefixes`), and computes, must pass too."""

RECORDINGS: tuple[Clause, ...] = (
    recordings.a_recording_gives_the_bits_of_its_calls,
    recordings.a_replay_knows_other_lengths_and_rows,
    recordings.a_choice_is_on_the_device_before_the_host_knows_it,
)
"""What a port that records operators (`caps.replays`), and computes, must pass too."""

CONTRACT: tuple[Clause, ...] = (
    *STRUCTURE,
    *VALUES,
    *OVERLAP,
    *HOST_ATTENTION,
    *ROW_INVARIANCE,
    *SHARED_PREFIXES,
    *RECORDINGS,
)
"""Every clause, each once."""

PARTS: Mapping[str, tuple[Clause, ...]] = {
    "structure": STRUCTURE,
    "values": VALUES,
    "overlap": OVERLAP,
    "host attention": HOST_ATTENTION,
    "row invariance": ROW_INVARIANCE,
    "shared prefixes": SHARED_PREFIXES,
    "recordings": RECORDINGS,
}
"""The clauses by the capability that they need."""


def clauses_for(caps: Capabilities) -> tuple[Clause, ...]:
    """The clauses that a port with these capabilities must pass."""
    needed = {
        "structure": True,
        "values": caps.computes,
        "overlap": caps.computes and caps.overlaps_copies,
        "host attention": caps.computes and caps.attends_on_host,
        "row invariance": caps.computes and caps.row_invariant,
        "shared prefixes": caps.computes and caps.shares_prefixes,
        "recordings": caps.computes and caps.replays,
    }
    return tuple(clause for part, clauses in PARTS.items() if needed[part] for clause in clauses)


def clause_name(clause: Clause) -> str:
    """The clause as a name of a test: its function's."""
    return clause.__name__


def violation(backend: Backend, clause: Clause, examples: int = 400) -> BaseException | None:
    """The first error that the port makes the clause raise within so many examples; None if it passes them all.

    Always the same examples, and no search for a smaller one: for tests of the contract itself.
    """

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        clause(backend, data)

    try:
        holds()
    except Exception as error:  # whatever a broken port raises is a violation
        return error
    return None
