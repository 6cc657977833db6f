"""Where a batch job stands, read from its sessions: as their accounts say in the end, and no figure ever goes down."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.states import JobState
from flexref.batch_job.watching.reader import JobStateReader
from flexref.engine.generation import GenerationJob
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Stats
from flexref.engine.session import Session
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own

NO_COPIES = "compute", "host_compute", "loading"
"""Lanes whose seconds are no copies of the account."""

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)


def run(session: Session, rows: list[int], policy: Policy, reader: JobStateReader) -> tuple[Stats, list[JobState]]:
    """A job with a row of so many new tokens for each of `rows`; its account, and the states after its passes."""
    job = GenerationJob(session, iter([RowRequest([1, 2, 3], Request(new)) for new in rows]), policy)
    states = [reader.read(session) for _ in job.run()]
    return job.stats, states


def counted(state: JobState) -> Counter[Any]:
    """Every figure that may not go down."""
    found: Counter[Any] = Counter(at=state.at_s, working=state.working_s, passes=state.passes)
    found.update(prompt=state.prompt_tokens, generated=state.generated_tokens)
    found.update({("lane", lane): seconds for lane, seconds in state.lane_busy_s.items()})
    for name in ("link_bytes", "link_s", "timed_bytes", "timed_copies"):
        for link, kinds in getattr(state, name).items():
            found.update({(name, link, kind): value for kind, value in kinds.items()})
    return found


def summed(accounts: list[Stats], name: str) -> Counter[tuple[str, str]]:
    """Bytes or seconds by link and kind of several accounts."""
    total: Counter[Any] = Counter()
    for stats in accounts:
        for link, kinds in getattr(stats, name).items():
            total.update({(link, kind): value for kind, value in kinds.items()})
    return total


def flat(table: Any) -> dict[tuple[str, str], Any]:
    return {(link, kind): value for link, kinds in table.items() for kind, value in kinds.items()}


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(
    jobs=st.lists(
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=4), own.policies()), min_size=1, max_size=3
    ),
    engines=st.integers(1, 2),
)
def test_a_state_says_what_all_accounts_say_together(
    model_file: Any, jobs: list[tuple[list[int], Policy]], engines: int
) -> None:
    reader, accounts, states, file = JobStateReader(), [], [], model_file(SPEC)
    for policy_of_engine in range(engines):
        with load(file, policy=jobs[0][1], scratch_bytes=1 << 16) as engine:
            run(engine.session, [2], jobs[0][1], JobStateReader())  # somebody else's
            for rows, policy in jobs[policy_of_engine:]:
                stats, seen = run(engine.session, rows, policy, reader)
                accounts.append(stats)
                states += seen
                states.append(reader.read())
                last = seen[-1]
                assert last.budget_bytes == stats.budget_bytes
                assert all(0 <= last.held_bytes[tier] <= stats.peak_bytes[tier] for tier in last.held_bytes)
                assert 0 < last.live_rows <= last.places
    last = reader.read(None, 7, 2, 1)
    assert (last.lines_done, last.lines_failed, last.faults) == (7, 2, 1)
    assert last.passes == sum(stats.occupancy.passes for stats in accounts)
    assert last.prompt_tokens == sum(stats.prompt_tokens for stats in accounts)
    assert last.generated_tokens == sum(stats.generated_tokens for stats in accounts)
    moved = summed(accounts, "link_bytes")
    assert flat(last.link_bytes) == flat(last.timed_bytes) == moved
    assert flat(last.timed_copies).keys() == moved.keys()
    took = summed(accounts, "link_s")
    assert all(abs(seconds - took[key]) < 1e-6 for key, seconds in flat(last.link_s).items())
    copied = sum(seconds for lane, seconds in last.lane_busy_s.items() if lane not in NO_COPIES)
    assert abs(copied - sum(took.values())) < 1e-6
    assert 0 < last.lane_busy_s["compute"] <= last.at_s
    before: Counter[Any] = Counter()
    for state in states:
        now = counted(state)
        assert all(now[name] >= figure for name, figure in before.items())
        before = now


def test_a_state_says_for_how_long_weights_loaded_beside_passes(model_file: Any) -> None:
    reader = JobStateReader()
    with load(model_file(SPEC), policy=Policy()) as engine:
        _, (first, *_) = run(engine.session, [3], Policy(), reader)
        _, states = run(engine.session, [3], Policy(), reader)
    assert first.lane_busy_s["loading"] > 0
    assert {state.lane_busy_s["loading"] for state in states} == {first.lane_busy_s["loading"]}
