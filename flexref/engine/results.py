"""What a job returns: outputs in the order of the input, and an account of time, links, tiers and placement."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from flexref.policy import Policy


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One new token of row `row` (its place in the input), and the text that became certain with it.

    `finish_reason` is None until the row's last token, then `stop` (end of sequence or a stop string) or `length`.
    """

    row: int
    token_id: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability; `text` is that of the token alone, None if unknown."""

    token_id: int
    logprob: float
    text: str | None


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A generated token, and the most probable ones at its place, falling, by the model's own distribution."""

    chosen: TokenLogprob
    top: list[TokenLogprob]

    def to_json(self) -> dict[str, Any]:
        """The token's own fields, and `top`."""
        return {**asdict(self.chosen), "top": [asdict(token) for token in self.top]}


@dataclass(frozen=True, slots=True)
class Output:
    """One row's result; `prompt` as it was given, `token_ids` the generated ones alone.

    `id` is what the prompt's owner calls it, None if nothing. `finish_reason`: `stop` for an end of sequence or a stop
    string, `length` where as many tokens came as were asked for or, if `cut_to_positions`, as the model has positions
    for. `text` is None for a model without a tokenizer; `logprobs` has an entry for every token if they were asked for.
    """

    prompt: str | list[int]
    text: str | None
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    logprobs: list[ChosenToken] | None = None
    id: str | int | None = None
    cut_to_positions: bool = False

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, fit for `json.dumps`."""
        known = None if self.logprobs is None else [token.to_json() for token in self.logprobs]
        return {**{entry.name: getattr(self, entry.name) for entry in fields(self)}, "logprobs": known}


@dataclass(slots=True)
class Stats:
    """The account of one job. Bytes per link and kind, peak bytes per tier, shares of bytes planned and real.

    `load_s` is the time to load weights before the first job, `allocate_s` that to take the memory of the job's
    blocks and to give it back (on CUDA host memory is pinned); they count in neither `prefill_s` nor `decode_s`.
    `peak_bytes` are the most that were held since the job began, with the weights that lay there already; loading them
    counts if the job did it.
    `prefill_s` is the time of the passes in which a token of a prompt was fed, `decode_s` all other time of the blocks.
    `tokens_per_s` is generated tokens over both together. `prefill_link_bytes` are those of `link_bytes` whose copies
    had been started when such a pass ended: with overlap, some belong to the pass after it.
    """

    backend: str
    policy: Policy
    rows: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    load_s: float = 0.0
    allocate_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    direct_disk_reads: bool = True
    link_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    prefill_link_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    link_s: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    budget_bytes: dict[str, int | None] = field(default_factory=dict)
    placement: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tier_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    lane_busy: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of prefill and decode together."""
        seconds = self.prefill_s + self.decode_s
        return self.generated_tokens / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


@dataclass(frozen=True, slots=True)
class Generation:
    """Outputs in the order of the prompts, and the job's account."""

    outputs: list[Output]
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        """`outputs` and `stats`, fit for `json.dumps`."""
        return {"outputs": [output.to_json() for output in self.outputs], "stats": self.stats.to_json()}
