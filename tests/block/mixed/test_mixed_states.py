"""Mixed jobs of every kind, one after another on one engine, beside rows alone; and parts that are wrong on purpose.

For hours of them: `FLEXREF_HYPOTHESIS_PROFILE=nightly pytest --timeout 0 tests/block/mixed`.
"""

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test as run_machine
from mixed_kit.alone import SPEC, Alone
from mixed_kit.late_port import LateRecordings
from mixed_kit.mixed_states import MixedStates

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.block import prefixes
from flexref.block.group import Group
from flexref.block.places import PrefixPlaces
from flexref.block.replays import FedLengths, Replays
from flexref.block.rows import Row, SharedPrefix
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import violation
from flexref.testing.clauses import recordings
from flexref.testing.contract import Clause
from flexref.tiers.arrangement import Arrangement

CLAUSES = (
    recordings.a_recording_gives_the_bits_of_its_calls,
    recordings.a_replay_knows_other_lengths_and_rows,
    recordings.a_choice_is_on_the_device_before_the_host_knows_it,
)


@pytest.fixture(scope="module")
def alone(model_file: Any) -> Generator[Alone, None, None]:
    """What every row has by itself, for all machines here."""
    with load(model_file(SPEC), policy=Policy(), scratch_bytes=1 << 16) as engine:
        yield Alone(engine)


@pytest.fixture
def machine(model_file: Any, counting: type, alone: Alone) -> type[MixedStates]:
    port = type("LatePort", (LateRecordings, counting), {})
    MixedStates.path, MixedStates.alone, MixedStates.right = model_file(SPEC), alone, None
    MixedStates.make_port = staticmethod(lambda recorded_bytes: port(recorded_bytes=recorded_bytes))
    return MixedStates


def test_rows_of_mixed_jobs_have_what_they_have_alone(machine: type[MixedStates]) -> None:
    run_machine(machine, settings=settings(stateful_step_count=10))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda part: part.__name__)
def test_the_port_that_is_late_does_what_its_recordings_must(clause: Clause) -> None:
    port = LateRecordings()
    error = violation(port, clause, 12)
    port.close()
    assert error is None, error


# Parts that are wrong


def is_always_read(prefix: SharedPrefix, pass_number: int, group: int) -> bool:
    return True


def is_read_in_any_group(prefix: SharedPrefix, pass_number: int, group: int) -> bool:
    return prefix.read_in is not None and prefix.read_in <= pass_number


def keeps_what_nobody_read(places: PrefixPlaces, prefix: SharedPrefix) -> None:
    prefix.users -= 1
    if not prefix.users:
        places._idle.append(prefix)


def forgets_who_is_idle(places: PrefixPlaces, prefix: SharedPrefix, group: int) -> bool:
    prefix.users += 1
    if prefix.reader is not None:
        return False
    place = places._places.take(len(prefix.tokens))
    assert place is not None
    prefix.begin(place, group)
    return True


def shares_the_last_token(row: Row) -> int:
    return len(row.prompt) // CHUNK_TOKENS


def leaves_what_was_foreseen(group: Group) -> list[Row]:
    ended = [row for row in group.rows if row.finish_reason is not None]
    group.rows = [row for row in group.rows if row.finish_reason is None]
    return ended


def takes_prefixes_for_rows(known: Arrangement, other: Arrangement) -> bool:
    slots = {slot is not None for _, slot, _ in (*known.near, *other.near)}
    return len(slots) == 1 and not (known.away or other.away or known.prefixes or other.prefixes)


def takes_old_lengths(known: FedLengths, be: Any, rows: Any) -> FedLengths:
    return FedLengths(rows, known.near, None, len(rows))


def releases_nothing(replays: Replays) -> None:
    """Stands for what is not done."""


Wrong = tuple[tuple[Any, str, Any], ...]

WRONG: Wrong = ((Replays, "release", releases_nothing),)
SELDOM_MET: Wrong = (
    (FedLengths, "renewed", takes_old_lengths),
    (prefixes, "chunks_of", shares_the_last_token),
    (SharedPrefix, "is_read", is_always_read),
    (PrefixPlaces, "enter", forgets_who_is_idle),
    (Arrangement, "may_stand_for", takes_prefixes_for_rows),
    (Group, "leave", leaves_what_was_foreseen),
    (PrefixPlaces, "leave", keeps_what_nobody_read),
    (SharedPrefix, "is_read", is_read_in_any_group),
)
"""Each is met after some dozens or hundreds of examples: tried where there is time for so many (`thorough`)."""
TRIED = WRONG if settings().derandomize else WRONG + SELDOM_MET


@pytest.mark.parametrize(("part", "name", "wrong"), TRIED, ids=lambda part: getattr(part, "__name__", part))
def test_what_is_wrong_is_caught(
    machine: type[MixedStates], part: Any, name: str, wrong: Any, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.right = part, name, getattr(part, name)
    monkeypatch.setattr(part, name, wrong)
    assert isinstance(caught(machine), Exception)
