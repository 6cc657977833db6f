"""Holds the prediction of a job: seconds, bytes and busy lanes; it predicts nothing itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from flexref.engine.results import BYTES_BY_LINK, BYTES_BY_TIER, SECONDS_BY_LINK
from flexref.json_types.values import Number, Whole


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a job will take: seconds, the most bytes held, bytes and seconds of links, and the busy share of lanes.

    `load_s` is the time to load weights from their file. `link_s` has the seconds of copies by link and kind, as
    `Stats.link_s` has. `lane_busy` is the share of prefill and decode during which a lane is at work.
    """

    rows: Annotated[int, Whole(1), "Rows in all."]
    blocks: Annotated[int, Whole(1), "Blocks, one after the other."]
    passes: Annotated[int, Whole(1), "Passes over the model."]
    places: Annotated[int, Whole(1), "Rows that may be in the block at a time."]
    occupancy: Annotated[float, Number(0, 1), "Live rows over places, on average over passes."]
    generated_tokens: Annotated[int, Whole(1), "New tokens of all rows."]
    load_s: Annotated[float, Number(0), "Seconds to load weights from their file."]
    prefill_s: Annotated[float, Number(0), "Seconds of the passes that feed prompts."]
    decode_s: Annotated[float, Number(0), "All other seconds of the blocks."]
    peak_bytes: Annotated[Mapping[str, int], BYTES_BY_TIER, "The most that is held at a time, by tier."]
    link_bytes: Annotated[Mapping[str, Mapping[str, int]], BYTES_BY_LINK, "Bytes moved, by link and kind of data."]
    link_s: Annotated[
        Mapping[str, Mapping[str, float]], SECONDS_BY_LINK, "Seconds of copies, by link and kind of data."
    ]
    disk_write_bytes: Annotated[int, "Bytes that the disk writes of cache and activations: whole pages."]
    lane_busy: Annotated[Mapping[str, float], "The share of prefill and decode in which a lane is busy, by lane."]
    simulated: Annotated[bool, "Whether it was simulated; else seconds are an estimate, without links and lanes."] = (
        True
    )
    """False: seconds are the linear program's estimate, and nothing is said of links and lanes."""

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over prefill and decode together."""
        return self.generated_tokens / (self.prefill_s + self.decode_s)

    @property
    def whole_s(self) -> float:
        """Seconds in all at most: those to load the weights come first here, and beside the first pass in a job."""
        return self.load_s + self.prefill_s + self.decode_s

    @property
    def block_s(self) -> float:
        """Seconds from when a row enters the block to when it has ended, on average over rows."""
        return (self.prefill_s + self.decode_s) * self.occupancy * self.places / self.rows

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}
