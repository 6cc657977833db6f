"""The errors of a comparison drawn over the layers; matplotlib is loaded when something is drawn, and not before."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.errors import FlexrefError, StorageError

if TYPE_CHECKING:
    from flexref.engine.compare import Comparison

SUFFIXES = (".png", ".svg", ".pdf")
"""What can be drawn into."""


def check_plot(path: str) -> None:
    """Complain before anything is computed: `FlexrefError` if matplotlib is missing, or for another kind of file."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise FlexrefError(f"--plot writes {', '.join(SUFFIXES)} files, found {path!r}")
    if find_spec("matplotlib") is None:
        raise FlexrefError("--plot needs matplotlib, which is not installed: pip install 'flexref[plots]'")


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
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
