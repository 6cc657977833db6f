"""The next token of every row of a group: settings and uniform numbers brought to a port's one sampling operator."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flexref.sampling.settings import SamplingSettings
from flexref.sampling.uniforms import Numbers, uniforms

if TYPE_CHECKING:
    from flexref.backend.protocol import Array, Backend


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses by `settings`; keeps no state, so that a row may be sampled in any group and in any order."""

    settings: SamplingSettings

    def choose(self, backend: "Backend", logits: "Array", rows: Numbers, steps: int | Numbers) -> npt.NDArray[np.int64]:
        """logits (B, V) -> token ids (B,) on the host.

        `rows` are the rows' numbers in the input, `steps` how many tokens each has generated so far (one for all, or
        (B,)): with the seed they alone decide where a row's draw falls. Raises `FlexrefError` if logits are not finite.
        """
        settings = self.settings
        if len(rows) != logits.shape[0]:
            raise ValueError(f"sampling got {logits.shape[0]} rows of logits for {len(rows)} row numbers")
        draws = np.zeros(len(rows)) if settings.greedy else uniforms(settings.seed, rows, steps)
        return backend.sample(logits, settings.temperature, settings.top_k, settings.top_p, draws)
