"""What a job returns: outputs in the order of the input, and an account of time, links, tiers and placement."""

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from flexref.engine.occupancy import Occupancy
from flexref.engine.wall import BEGINS, PARTS, WholeTime
from flexref.errors import FlexrefError
from flexref.json_types.containers import MapOf
from flexref.json_types.values import Maybe, Number, OneOf, Whole
from flexref.policy import Policy
from flexref.units import KINDS, LINKS, TIERS

FINISH_REASONS = ("stop", "length")

BYTES_BY_LINK = MapOf(MapOf(Whole(0), KINDS), LINKS)
SECONDS_BY_LINK = MapOf(MapOf(Number(0), KINDS), LINKS)
BYTES_BY_TIER = MapOf(Whole(0), TIERS, TIERS)
SECONDS_BY_PART = MapOf(Number(0), PARTS, PARTS)
PLACEMENT = MapOf(MapOf(MapOf(Number(0), TIERS, TIERS), ("planned", "real")), KINDS)
"""What figures of a job are in JSON."""


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

    token_id: Annotated[int, Whole(0), "The token."]
    logprob: Annotated[float, "The natural logarithm of its probability."]
    text: Annotated[str | None, "The text of the token alone; null for a model without a tokenizer."]


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

    prompt: Annotated[str | list[int], "The prompt as it was given: text or token ids."]
    text: Annotated[str | None, "What was generated; null for a model without a tokenizer."]
    token_ids: Annotated[list[int], "The generated tokens."]
    finish_reason: Annotated[
        str, OneOf(FINISH_REASONS), "stop: an end of sequence or a stop text; length: as many tokens as there may be."
    ]
    prompt_tokens: Annotated[int, Whole(1), "Tokens of the prompt."]
    logprobs: Annotated[list[ChosenToken] | None, "For every generated token, if they were asked for; else null."] = (
        None
    )
    id: Annotated[str | int | None, "What the prompt's owner calls it; null if nothing."] = None
    cut_to_positions: Annotated[bool, "Whether fewer tokens came because the model has no more positions."] = False

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, fit for `json.dumps`."""
        known = None if self.logprobs is None else [token.to_json() for token in self.logprobs]
        return {**{entry.name: getattr(self, entry.name) for entry in fields(self)}, "logprobs": known}


@dataclass(slots=True)
class Stats:
    """The account of one job. Bytes per link and kind, peak bytes per tier, shares of bytes planned and real.

    `load_s` is the time in which nothing was done but weights loaded, by the job or by the one before it that needed
    them; what loads beside a pass is not waited for. `allocate_s` is that to take the memory of the job's
    blocks, to give it back, and to wait, beside an idle device, for what is still to be pinned of it (on CUDA); they
    count in neither `prefill_s` nor `decode_s`.
    `peak_bytes` are the most that were held since the job began, with the weights that lay there already; loading them
    counts if the job did it.
    `prefill_s` is the time of the passes that only read prompts, `decode_s` all other time of the blocks: where rows
    come as others end, prompts are read in passes that generate too. `tokens_per_s` is generated tokens over both
    together, `read_tokens_per_s` likewise tokens of prompts. `prefill_link_bytes` are those of `link_bytes` whose
    copies had been started when such a pass ended: with overlap, some belong to the pass after it.
    `wall_parts_s` has every moment of `wall_s` in one part alone (`engine.wall`), of an engine's first job also those
    before it. What is compiled, and what the caller does with tokens, counts there in neither `prefill` nor `decode`.
    """

    backend: Annotated[str, "The port that it ran on."]
    policy: Annotated[Policy, "The policy that it ran by."]
    row_invariant: Annotated[
        bool,
        "Whether a row's results had bits of their own, whatever rows were beside it: not where attention ran on a "
        "host that rounds otherwise than the device, since the other rows may decide for which rows it did.",
    ] = False
    rows: Annotated[int, Whole(0), "Rows in all."] = 0
    blocks: Annotated[int, Whole(0), "Blocks, one after the other."] = 0
    rows_admitted: Annotated[int, Whole(0), "Rows that entered a block."] = 0
    rows_retired: Annotated[int, Whole(0), "Rows that left one because they had ended."] = 0
    occupancy: Annotated[Occupancy, "How full the blocks were."] = field(default_factory=Occupancy)
    prompt_tokens: Annotated[int, Whole(0), "Tokens of prompts that were read."] = 0
    shared_prefix_tokens: Annotated[
        int, Whole(0), "Tokens of prompts that were not read, since another row began with the same."
    ] = 0
    shared_prefix_link_bytes: Annotated[
        int, Whole(0), "Bytes of cache that did not cross to the device, since they are shared and lie there."
    ] = 0
    generated_tokens: Annotated[int, Whole(0), "New tokens of all rows."] = 0
    replayed_visits: Annotated[
        int, Whole(0), "Visits of a group to a stage whose operators were replayed, and not called one by one."
    ] = 0
    load_s: Annotated[float, Number(0), "Seconds in which nothing was done but weights loaded."] = 0.0
    allocate_s: Annotated[
        float, Number(0), "Seconds to take and give back the memory of blocks; in no other figure."
    ] = 0.0
    kept_host_bytes: Annotated[int, Whole(0), "Bytes of host memory that the engine keeps pinned for its next job."] = 0
    prefill_s: Annotated[float, Number(0), "Seconds of the passes that only read prompts."] = 0.0
    decode_s: Annotated[float, Number(0), "All other seconds of the blocks."] = 0.0
    wall_s: Annotated[float, Number(0), "Seconds of all of it, from what wall_begins says to the job's end."] = 0.0
    wall_begins: Annotated[str, OneOf(BEGINS), "With what wall_s begins: from an engine's second job on, job."] = "job"
    wall_parts_s: Annotated[dict[str, float], SECONDS_BY_PART, "Seconds of each part; they add up to wall_s."] = field(
        default_factory=lambda: dict.fromkeys(PARTS, 0.0)
    )
    direct_disk_reads: Annotated[bool, "Whether weights on disk were read past the page cache."] = True
    direct_spills: Annotated[bool, "Whether what was spilled was written and read past the page cache."] = True
    link_bytes: Annotated[dict[str, dict[str, int]], BYTES_BY_LINK, "Bytes moved, by link and kind of data."] = field(
        default_factory=dict
    )
    spilled_bytes: Annotated[
        int, Whole(0), "What the disk has written of what was spilled: whole pages, where it is written directly."
    ] = 0
    read_in_vain_bytes: Annotated[
        int, Whole(0), "What of link_bytes was read from disk ahead, for passes that then did not come."
    ] = 0
    prefill_link_bytes: Annotated[
        dict[str, dict[str, int]], BYTES_BY_LINK, "What of link_bytes was under way when the prefill ended."
    ] = field(default_factory=dict)
    link_s: Annotated[dict[str, dict[str, float]], SECONDS_BY_LINK, "Seconds of copies, by link and kind of data."] = (
        field(default_factory=dict)
    )
    peak_bytes: Annotated[dict[str, int], BYTES_BY_TIER, "The most that was held at a time, by tier."] = field(
        default_factory=dict
    )
    budget_bytes: Annotated[
        dict[str, int | None], MapOf(Maybe(Whole(0)), TIERS, TIERS), "What may be held, by tier; null: no bound."
    ] = field(default_factory=dict)
    placement: Annotated[
        dict[str, dict[str, dict[str, float]]], PLACEMENT, "Shares of the tiers by kind of data, planned and real."
    ] = field(default_factory=dict)
    tier_bytes: Annotated[dict[str, dict[str, int]], MapOf(BYTES_BY_TIER, KINDS), "Bytes by kind of data and tier."] = (
        field(default_factory=dict)
    )
    lane_busy: Annotated[dict[str, float], MapOf(Number(0)), "The share of time in which a lane is busy, by lane."] = (
        field(default_factory=dict)
    )

    def count_whole(self, found: WholeTime) -> None:
        """Take over where the whole time of the job went."""
        self.wall_s, self.wall_begins, self.wall_parts_s = found.wall_s, found.wall_begins, found.wall_parts_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of prefill and decode together."""
        seconds = self.prefill_s + self.decode_s
        return self.generated_tokens / seconds if seconds else 0.0

    @property
    def read_tokens_per_s(self) -> float:
        """Tokens of prompts that were read per second of prefill and decode together."""
        seconds = self.prefill_s + self.decode_s
        return self.prompt_tokens / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {
            **asdict(self),
            "tokens_per_s": self.tokens_per_s,
            "read_tokens_per_s": self.read_tokens_per_s,
        }


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of the request number `number` of a stream of them: an output, or why it failed alone."""

    number: int
    output: Output | None
    error: FlexrefError | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Outputs in the order of the prompts, and the job's account."""

    outputs: list[Output]
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        """`outputs` and `stats`, fit for `json.dumps`."""
        return {"outputs": [output.to_json() for output in self.outputs], "stats": self.stats.to_json()}
