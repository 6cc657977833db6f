"""How the next token is chosen from logits, as numbers that check themselves; it knows no array and no port."""

from dataclasses import dataclass

from flexref.errors import PromptError
from flexref.units import is_finite, is_integer

MAX_SEED = (1 << 64) - 1
"""The seed is the 64-bit key of the generator in `sampling.uniforms`."""

MAX_TOP_K = (1 << 31) - 1
"""A port may hold top_k as a 32-bit integer."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Temperature 0 is greedy; top_k 0 and top_p 1 are off; with equal settings a row gets equal tokens.

    temperature >= 0 divides the logits; then the `top_k` largest stay; then the smallest set of most probable tokens
    whose probabilities add up to `top_p`, in (0, 1]. Raises `PromptError` naming the setting, what it is and must be.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_finite(self.temperature) or self.temperature < 0:
            raise PromptError(f"temperature must be a finite number of at least 0, found {self.temperature!r}")
        if not is_integer(self.top_k) or not 0 <= self.top_k <= MAX_TOP_K:
            raise PromptError(f"top_k must be an integer from 0 (off) to {MAX_TOP_K}, found {self.top_k!r}")
        if not is_finite(self.top_p) or not 0 < self.top_p <= 1:
            raise PromptError(f"top_p must be more than 0 and at most 1 (off), found {self.top_p!r}")
        if not is_integer(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise PromptError(f"seed must be an integer from 0 to {MAX_SEED}, found {self.seed!r}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken, so that nothing is random."""
        return self.temperature == 0
