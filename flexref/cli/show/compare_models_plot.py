"""The errors of a comparison drawn over the layers; matplotlib is loaded when something is drawn, and not before."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.files import write_bytes

if TYPE_CHECKING:
    from flexref.quality.compare import Comparison


def draw(found: "Comparison", path: str) -> None:
    """Relative errors of hidden states by stage; `StorageError` if `path` cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found]
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    stages = [layer.stage for layer in found.layers]
    axes.plot(stages, [layer.overall for layer in found.layers], marker="o", label="over all tokens")
    axes.plot(stages, [layer.median_token for layer in found.layers], marker="s", label="median token")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", rotation=90 if len(stages) > 8 else 0)
    axes.set_ylabel("relative error of hidden states")
    axes.set_title(f"KL(A||B) {found.kl_mean:.3g} nats, same top token {found.same_top:.1%}, {found.tokens} tokens")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    content = BytesIO()
    figure.savefig(content, format=Path(path).suffix.lower().removeprefix("."), dpi=150)
    write_bytes(path, content.getvalue())
