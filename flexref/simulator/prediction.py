"""What a job is predicted to take: seconds, bytes and busy lanes; it predicts nothing itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a job will take: seconds, bytes that are held at most, bytes and busy seconds of links and lanes.

    `load_s` is that of weights from their file. `link_s` are the seconds that copies take, by link and kind, as
    `Stats.link_s`; `lane_busy` is the share of prefill and decode in which each lane is busy.
    """

    rows: int
    blocks: int
    generated_tokens: int
    load_s: float
    prefill_s: float
    decode_s: float
    peak_bytes: Mapping[str, int]
    link_bytes: Mapping[str, Mapping[str, int]]
    link_s: Mapping[str, Mapping[str, float]]
    lane_busy: Mapping[str, float]
    simulated: bool = True
    """False: seconds are the linear program's estimate, and nothing is said of links and lanes."""

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over prefill and decode together."""
        return self.generated_tokens / (self.prefill_s + self.decode_s)

    @property
    def disk_write_bytes(self) -> int:
        """Bytes of cache and activations that are spilled."""
        return sum(self.link_bytes.get("host->disk", {}).values())

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s, "disk_write_bytes": self.disk_write_bytes}
