"""Calls of operators that a lane would make on the host, made in order with the operators; it knows no operator."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from flexref.backend.protocol import HostWork, LaneStep, Ticket


def called_in_order(steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Sequence[LaneStep]:
    """`steps` for a lane, of which operators are called now, once `after` is done; the lane raises what they raise.

    For whoever stands before a port and looks at one call of an operator after another: beside each other their calls
    would be mixed up. Results are the same.
    """
    if not any(isinstance(step, HostWork) and step.operators for step in steps):
        return steps
    for ticket in after:
        ticket.wait()
    return [_called(step) if isinstance(step, HostWork) and step.operators else step for step in steps]


def _called(step: HostWork) -> HostWork:
    """What is left of it for the lane: nothing, or to raise what the call has raised."""
    try:
        step.call()
    except Exception as error:
        return replace(step, call=_raising(error))
    return replace(step, call=_nothing)


def _nothing() -> None:
    pass


def _raising(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call
