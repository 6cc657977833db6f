"""Who may look on while a block works: what they are told, and when; it knows no block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Ticket
from flexref.schedule.zigzag import Visit


@dataclass(frozen=True, slots=True)
class Computed:
    """A computed visit: how many rows and tokens it fed, its start and end in seconds of the port's clock."""

    stage: Stage
    visit: Visit
    rows: int
    tokens: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class TimedVisit:
    """A visit whose operators have been called, with a mark before and after them; `fed`: its rows and tokens."""

    stage: Stage
    visit: Visit
    fed: tuple[int, int]
    begin: Ticket
    end: Ticket


OnComputed = Callable[[Computed], None]
"""Told of every computed visit."""

OnVisit = Callable[[Stage, int, int], None]
"""Told before a visit's operators are called: stage, group, number of the pass."""

OnLogits = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]], None]
"""Given a copy of the logits that each token is chosen from: row numbers (B,), steps (B,), logits (B, V).

A row's step is how many tokens it has generated before this one.
"""

OnChoice = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]], None]
"""Given a copy of the logits and what was chosen from them: row numbers (B,), logits (B, V), token ids (B,)."""

OnHidden = Callable[[Stage, npt.NDArray[np.int64], npt.NDArray[Any]], None]
"""Given a copy of a group's hidden states after the embedding and every layer: stage, row number of each token (T,),
hidden states (T, E) in the port's type, a row's tokens in their order."""

OnNotice = Callable[[str], None]
"""Told in a line of what goes on more slowly than was to be expected."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who wants to see a block at work. What they are given a copy of is theirs, and no budget counts it."""

    on_computed: OnComputed | None = None
    on_logits: OnLogits | None = None
    on_visit: OnVisit | None = None
    on_choice: OnChoice | None = None
    on_hidden: OnHidden | None = None
    on_notice: OnNotice | None = None
    on_place: OnVisit | None = None
    """Told when the host comes to a visit, also where its operators are replayed: for a display of how far a job is."""
