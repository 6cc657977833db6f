"""Sampling for a port whose device puts tokens in order: the walk along shares is the host's; it knows no device."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.errors import FlexrefError


def places_chosen(
    ranked: npt.NDArray[np.floating], temperature: float, top_p: float, uniforms: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """ranked (B, K), logits in falling order, uniforms (B,) -> the place (B,) of every row's token among the K.

    The shortest beginning of softmax(ranked / temperature) that holds the share `top_p` stays, and its cumulative
    distribution is inverted at the row's uniform; a row's place does not depend on other rows.
    """
    with np.errstate(under="ignore"):
        shares = np.exp((ranked.astype(np.float64) - ranked[:, :1]) / temperature)
    chosen = np.empty(len(ranked), np.int64)
    for row, reached in enumerate(shares.cumsum(-1)):
        kept = reached[: np.searchsorted(reached, top_p * reached[-1]) + 1]
        chosen[row] = min(np.searchsorted(kept, uniforms[row] * kept[-1], "right"), len(kept) - 1)
    return chosen


class RankedSampling:
    """The part of `Backend` that is `sample`, for a port that puts tokens in order (`_ranked`)."""

    def _sampled(self, logits: Any) -> Iterable[slice]:
        """All rows of logits (B, V), in pieces that may be ranked at once."""
        raise NotImplementedError

    def _ranked(self, logits: Any, best: bool) -> tuple[Any, npt.NDArray[np.int64]] | None:
        """(logits in falling order, their ids), (B, V) each, on the host; equal ones by rising ids.

        With `best` the first id is enough, and logits are not looked at. None if some are not finite.
        """
        raise NotImplementedError

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """See `Backend.sample`."""
        chosen = np.empty(len(uniforms), np.int64)
        for rows in self._sampled(logits):
            found = self._ranked(logits[rows], temperature == 0)
            if found is None:
                raise FlexrefError("logits are not finite: the model computed an infinity, or what is no number")
            ranked, ids = found
            places = np.zeros(len(ids), np.int64)
            if temperature:
                places = places_chosen(ranked[:, : top_k or None], temperature, top_p, uniforms[rows])
            chosen[rows] = np.take_along_axis(ids, places[:, None], -1)[:, 0]
        return chosen
