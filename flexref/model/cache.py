"""What attention needs to know of a layer's KV cache: handles of its rows; it knows neither tiers nor slots."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexref.backend.protocol import Array


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The caches of a group's rows in one layer.

    The first `near_tokens` of the T tokens belong to rows whose caches the operators reach (`rows`, `segments`: the
    port's handles). `far(qkv, context)` begins attention for the rest where their caches are, qkv (T', 3E) in, context
    (T', E) out, and gives what is to be called before the context is read; None if there is no rest.
    """

    rows: Any
    segments: Any
    near_tokens: int
    far: Callable[[Array, Array], Callable[[], None]] | None = None
