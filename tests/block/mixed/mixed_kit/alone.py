"""What is asked of a mixed job, and what each row has if nobody else is there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import CHUNK_TOKENS
from flexref.engine.engine import Engine
from flexref.engine.events import Listeners
from flexref.engine.generation import GenerationJob
from flexref.engine.outcomes import generation
from flexref.engine.request import Request, RowRequest
from flexref.policy import Policy
from flexref.sampling.settings import SamplingSettings

VOCABULARY, MOST_NEW = 40, 6
POSITIONS = 2 * CHUNK_TOKENS + 16
ENDS = (7, 11, 20, 33)
SPEC = ModelSpec("mixed", VOCABULARY, POSITIONS, 16, 16, 2, 2, 32, eos_token_ids=ENDS)

RULES = (SamplingSettings(), SamplingSettings(), SamplingSettings(1.0, seed=3), SamplingSettings(0.8, top_k=9, seed=1))


def texts() -> list[tuple[int, ...]]:
    """Three that are as long as a model may read; the second begins as the first does."""
    draw = np.random.default_rng(1)
    first, second, third = (tuple(draw.integers(0, VOCABULARY, POSITIONS).tolist()) for _ in range(3))
    return [first, first[: CHUNK_TOKENS + 20] + second[CHUNK_TOKENS + 20 :], third]


TEXTS = texts()


@dataclass(frozen=True)
class Asked:
    """A request: so many `tokens` of a text and a tail of its own, and the number that it draws by.

    `begun`: how many of the tokens that it generates are known already.
    """

    text: int
    tokens: int
    tail: int
    limit: int
    sampling: SamplingSettings
    ignore_eos: bool
    draw: int
    begun: int = 0

    @property
    def prompt(self) -> tuple[int, ...]:
        """Many begin as others do, for a chunk or two, and differ in their last tokens, if at all."""
        return (*TEXTS[self.text][: self.tokens], *[self.tail] * self.tail)

    @property
    def can_be_served(self) -> bool:
        """Whether the model has a position for it."""
        return 0 < len(self.prompt) <= POSITIONS

    @property
    def most(self) -> int:
        """The tokens that it may have."""
        return min(self.limit, POSITIONS + 1 - len(self.prompt))

    def tokens_of(self, alone: list[int]) -> list[int]:
        """Those of `alone`, which knows no end, that it has when it has ended."""
        found = alone[: self.most]
        ends = () if self.ignore_eos else ENDS
        return next((found[: place + 1] for place, token in enumerate(found) if token in ends), found)


LENGTHS = (CHUNK_TOKENS, 2, 2 * CHUNK_TOKENS, CHUNK_TOKENS, 1, 2 * CHUNK_TOKENS, 5, 90, POSITIONS - 3, 0, POSITIONS)
"""Of no token, or of more than there are positions, none can be served."""


@st.composite
def requests(draw: st.DrawFn) -> list[Asked]:
    """A job's, which are chosen by one rule as a rule: only then a pass may be called ahead."""
    rule = draw(st.sampled_from(RULES))
    rules = st.just(rule) if draw(st.sampled_from((True, True, False))) else st.sampled_from(RULES)
    asked = st.builds(
        Asked,
        text=st.sampled_from((0, 0, 1, 2)),
        tokens=st.sampled_from(LENGTHS),
        tail=st.integers(0, 2),
        limit=st.sampled_from((MOST_NEW, 2, 4, 1, 5)),
        sampling=rules,
        ignore_eos=st.sampled_from((True, True, False)),
        draw=st.integers(0, 2),
    )
    return draw(st.lists(asked, min_size=1, max_size=8))


class Alone:
    """The tokens and logits of rows by themselves; each is computed once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[Any, tuple[list[int], list[Any]]] = {}

    def __call__(self, asked: Asked, scheme: str) -> tuple[list[int], list[Any]]:
        """What it has where no token ends it, up to as many tokens as any may have."""
        draw = 0 if asked.sampling.greedy else asked.draw
        key = asked.prompt, asked.sampling, draw, scheme
        if key not in self._known:
            logits: list[Any] = []
            policy = Policy(
                rows_per_group=1, overlap=False, cache_scheme=scheme, cache_group_size=8, share_prefixes=False
            )
            request = Request(MOST_NEW, asked.sampling, ignore_eos=True)
            row = RowRequest(asked.prompt, request, draw_number=draw)
            listeners = Listeners(None, lambda rows, steps, found: logits.append(found[0].copy()), None, None)
            job = GenerationJob(self._engine.session, [row], policy, listeners, all_at_once=True)
            self._known[key] = generation(job).outputs[0].token_ids, logits
        return self._known[key]


def request_of(asked: Asked, alone: list[int]) -> RowRequest:
    """As a caller asks for it, with the tokens that it has already."""
    request = Request(asked.limit, asked.sampling, ignore_eos=asked.ignore_eos)
    return RowRequest(asked.prompt, request, tuple(alone[: asked.begun]), asked.draw)


class Gone(Exception):
    """What the caller's iterator raises, or one that looks on."""


def arriving(requests: list[RowRequest], raises: bool, arrived: list[int]) -> Iterator[RowRequest]:
    """The requests, noted when they are taken; then maybe an error."""
    for number, request in enumerate(requests):
        arrived.append(number)
        yield request
    if raises:
        raise Gone
