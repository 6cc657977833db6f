"""The rows of a job in words: all alike, or of some spread; it knows no command."""

from typing import TYPE_CHECKING

from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.block.counted_rows import LengthsSummary, Spread
    from flexref.planner.plan_request import PlanRequest


def lengths_in_words(summary: "LengthsSummary") -> str:
    """Prompts and new tokens of rows that differ, without their number."""
    prompts, new = spread_in_words(summary.prompt_tokens, "token"), spread_in_words(summary.new_tokens, "new token")
    return f"prompts of {prompts}, {new}"


def spread_in_words(spread: "Spread", what: str) -> str:
    """From the least to the most, and the mean; one number where all are alike."""
    if spread.least == spread.most:
        return how_many(spread.most, what)
    return f"{spread.least} to {how_many(spread.most, what)} (mean {spread.mean:.4g})"


def request_lengths(wanted: "PlanRequest") -> str:
    """The same for what is planned."""
    if wanted.lengths is not None:
        return lengths_in_words(wanted.lengths.summary)
    assert wanted.prompt_tokens is not None
    assert wanted.new_tokens is not None
    return f"prompts of {how_many(wanted.prompt_tokens, 'token')}, {how_many(wanted.new_tokens, 'new token')}"
