"""The errors of a comparison drawn over the layers; it compares nothing."""

from typing import TYPE_CHECKING

from flexref.cli.show.plots import HEIGHT, drawing, style

if TYPE_CHECKING:
    from flexref.quality.compare import Comparison

TURNED = 8
"""With more stages than this their names stand upright."""


def draw(title: str, found: "Comparison", path: str) -> None:
    """Relative errors of hidden states by stage; `StorageError` if `path` cannot be written."""
    with drawing(path, title, HEIGHT) as axes:
        stages = [layer.stage for layer in found.layers]
        axes.plot(stages, [layer.overall for layer in found.layers], label="over all tokens", **style(0))
        axes.plot(stages, [layer.median_token for layer in found.layers], label="median token", **style(1))
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", rotation=90 if len(stages) > TURNED else 0)
        axes.set_xlabel("after")
        axes.set_ylabel("relative error of hidden states")
        axes.grid(visible=True, alpha=0.3)
        if stages:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "hidden states were not compared: the models differ in layers or width", ha="center")
