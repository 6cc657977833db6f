"""What the contract says of a port that breaks it: the law, what was found, what was needed, in whole sentences."""

import re
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.errors import StorageError
from flexref.testing.bench import assert_same_bits
from flexref.testing.clauses import attention, lanes, memory, pointwise, products, sampling
from flexref.testing.contract import Clause
from flexref.testing.verdicts import verdicts


class Ticket:
    """A ticket of steps that ran at once."""

    def __init__(self, times: Any = ()) -> None:
        self._times = times

    def wait(self) -> None:
        """Nothing is owed."""

    def done(self) -> bool:
        return True

    def times(self) -> Any:
        return self._times


class RunsAtOnce(NumpyBackend):
    """As simple ports do: steps run inside `submit`, and what they raise leaves it."""

    def submit(self, lane: Any, steps: Any, after: Any) -> Any:
        for step in steps:
            if hasattr(step, "call"):
                step.call()
        return Ticket()


class TimesAreMissing(NumpyBackend):
    def mark(self) -> Any:
        super().mark().wait()
        return Ticket()


class FailsForEver(NumpyBackend):
    """A lane raises its first failure for everything that comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, BaseException] = {}

    def submit(self, lane: Any, steps: Any, after: Any) -> Any:
        if lane in self.failed and not after:
            raise self.failed[lane]
        ticket = super().submit(lane, steps, after)
        try:
            ticket.wait()
        except StorageError as error:
            self.failed[lane] = error
        return ticket


class ActivationIsNan(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        x[...] = np.nan
        return x


class GatherTakesRowZero(NumpyBackend):
    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        out[...] = table[0]
        return out


class LinearRaises(NumpyBackend):
    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        raise NotImplementedError


class SampleGivesNone(NumpyBackend):
    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        return None


class AllocatesPages(NumpyBackend):
    def allocate(self, tier: str, nbytes: int) -> Any:
        return super().allocate(tier, 4096)


class AttendsAtRandom(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        result = super().attend(rows, segments, q, scale, out)
        result *= np.float32(1 + 1e-6 * np.random.default_rng().random())
        return result


MESSAGES: tuple[tuple[type[NumpyBackend], Clause, str], ...] = (
    (
        RunsAtOnce,
        lanes.failures_reach_all_who_wait,
        r"AssertionError: submit raised what its host work raised \(host work that fails on purpose, number \d+\), "
        r"needed a ticket whose wait raises it",
    ),
    (
        RunsAtOnce,
        lanes.tickets_are_waited_for,
        r"AssertionError: times\(\) of a ticket of \d steps gives \(\), needed a pair of start and end for every step",
    ),
    (
        TimesAreMissing,
        lanes.times_are_those_of_the_host,
        r"AssertionError: times\(\) of a mark gives \(\), needed one pair of start and end",
    ),
    (
        FailsForEver,
        lanes.failures_reach_all_who_wait,
        r"AssertionError: submit to a lane on which earlier work failed raised StorageError: host work that fails on "
        r"purpose, number \d+; needed a lane that lives on",
    ),
    (
        ActivationIsNan,
        pointwise.activations_are_their_functions,
        r"AssertionError: \w+: element \(0, 0\) of \(\d+, \d+\) is nan, which is no finite number, needed .* within "
        r".*; \d+ of \d+ elements are beyond what is permitted$",
    ),
    (
        GatherTakesRowZero,
        products.gather_takes_the_named_rows,
        r"AssertionError: gather: element \(\d+, \d+\) of \(\d+, \d+\) is [-+\d.e]+, needed [-+\d.e]+ exactly; "
        r"\d+ of \d+ elements differ; token \d+ has the id \d+, the table the rows \d+ to \d+$",
    ),
    (
        LinearRaises,
        products.linear_is_the_product,
        r"the port raised NotImplementedError without a message where the clause has "
        r"`fresh = backend.linear\(product.x, product.w, product.b\)` \(products.py, line \d+\)",
    ),
    (
        SampleGivesNone,
        sampling.greedy_takes_the_lowest_of_the_best,
        r"what the port gave does not serve: AttributeError: .* where the clause has `.*` \(sampling.py, line \d+\)",
    ),
    (
        AllocatesPages,
        memory.allocated_memory_has_the_asked_size,
        r"AssertionError: allocate\('device', \d+\) has 4096 bytes, needed \d+$",
    ),
    (
        AttendsAtRandom,
        attention.attention_repeats_its_bits,
        r"(not every run of the same call breaks it; one says: )?AssertionError: attend, called again: element .* "
        r"exactly; \d+ of \d+ elements differ",
    ),
)


@pytest.mark.parametrize(("port", "clause", "said"), MESSAGES, ids=lambda part: getattr(part, "__name__", None))
def test_a_message_says_what_was_found_and_what_was_needed(port: type[NumpyBackend], clause: Clause, said: str) -> None:
    backend = port()
    (verdict,) = verdicts(backend, 50, [clause])
    backend.close()
    assert verdict.error is not None
    assert re.match(said, verdict.error), verdict.error
    assert len(verdict.error) < 450
    assert verdict.law == " ".join(str(clause.__doc__).split())
    assert verdict.to_json()["law"] == verdict.law


def test_numbers_are_shown_as_numbers() -> None:
    with pytest.raises(
        AssertionError, match=r"^it: element \(1,\) of \(2,\) is 3.0, needed 2.5 exactly; 1 of 2 elements"
    ):
        assert_same_bits(np.float32([1, 3]), np.float32([1, 2.5]), "it")
