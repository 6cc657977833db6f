"""How full blocks were, pass by pass, in a few numbers however many passes there are; it knows no block."""

from dataclasses import dataclass, field
from typing import Annotated

from flexref.json_types.values import Number, Whole

STRETCHES_MOST = 256
"""So many figures are kept at most. When there are more, two neighbours become their mean."""


@dataclass(slots=True)
class Occupancy:
    """Live rows over places. `by_stretch`: the mean of every `stretch_passes` passes in their order, the last of fewer.

    A row is live from the pass in which its prompt begins to be read to the one that gives its last token.
    """

    passes: Annotated[int, Whole(0), "Passes over the model."] = 0
    mean: Annotated[float, Number(0, 1), "Live rows over places, on average over passes."] = 0.0
    stretch_passes: Annotated[int, Whole(1), "Passes that each of the next figures stands for."] = 1
    by_stretch: Annotated[list[float], "Live rows over places, in the order of the passes."] = field(
        default_factory=list
    )

    def add(self, share: float) -> None:
        """One more pass, of which this share of the places had a row."""
        before = self.passes % self.stretch_passes
        if before == 0:
            self.by_stretch.append(0.0)
        self.by_stretch[-1] += (share - self.by_stretch[-1]) / (before + 1)
        self.passes += 1
        self.mean += (share - self.mean) / self.passes
        if len(self.by_stretch) > STRETCHES_MOST and self.passes % self.stretch_passes == 0:
            last = [] if len(self.by_stretch) % 2 == 0 else [self.by_stretch.pop()]
            pairs = zip(self.by_stretch[::2], self.by_stretch[1::2], strict=True)
            self.by_stretch = [(first + second) / 2 for first, second in pairs] + last
            self.stretch_passes *= 2
