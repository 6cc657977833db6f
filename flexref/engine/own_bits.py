"""Whether the rows of a job have bits of their own, from its policy and what the port promises; it runs nothing."""

from flexref.backend.capabilities import Capabilities
from flexref.policy import Policy

TOGETHER = "computes rows together: with other rows beside it a row's tokens may differ where two are nearly as likely"
"""What a port does that was asked for rows with bits of their own, and has none."""

ELSEWHERE = (
    "rounds otherwise where attention runs on the host, and the other rows may decide for which rows it does: "
    "a row's tokens may differ where two are nearly as likely"
)
"""What such a job does on a port that else has them."""


def attends_elsewhere(policy: Policy, caps: Capabilities) -> bool:
    """Whether attention runs on a processor other than the device's for some rows of a block.

    Which rows those are follows from the places that they find, and so from the rows beside them. A prompt that is read
    in several passes begins on the device in any case, so it is no matter whether all rows have such places.
    """
    return policy.shares_attention > 0 and policy.cache.device < 1 and not caps.one_memory


def no_own_bits(policy: Policy, caps: Capabilities) -> str | None:
    """Why rows have no bits of their own under a policy that asks for them, in words that follow the port's name."""
    if not caps.row_invariant:
        return TOGETHER
    return ELSEWHERE if attends_elsewhere(policy, caps) else None
