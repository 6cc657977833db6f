"""The last step of sampling, for a port whose device has put tokens in order: a walk along shares; it knows no port."""

import numpy as np
import numpy.typing as npt


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
