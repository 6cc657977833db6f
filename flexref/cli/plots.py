"""Plots of plans; matplotlib is loaded when something is drawn, and not before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexref.cli.compare_models_plot import check_plot
from flexref.errors import StorageError

if TYPE_CHECKING:
    from flexref.engine.candidates import Candidate

__all__ = ["check_plot", "draw_machines", "draw_pareto"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

BAR_WIDTH = 0.8
"""Of all bars of one machine together."""


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def draw_pareto(title: str, points: "Sequence[tuple[float, Candidate]]", path: str) -> None:
    """Tokens per second over the latency of a block, the best policy at each bound; `StorageError` if refused."""
    figure, axes = _figure(8, 5)
    seen: dict[str, list[tuple[float, float, str]]] = {}
    for _, candidate in points:
        prediction, policy = candidate.prediction, candidate.policy
        if prediction is None or policy is None:
            continue
        block_s = (prediction.prefill_s + prediction.decode_s) / prediction.blocks
        label = f"{policy.rows_per_group}x{policy.groups_per_block}"
        seen.setdefault(candidate.label, []).append((block_s, prediction.tokens_per_s, label))
    everything = sorted(point for some in seen.values() for point in some)
    axes.plot([point[0] for point in everything], [point[1] for point in everything], color="0.7", zorder=1)
    for (name, some), colour in zip(sorted(seen.items()), COLOURS * len(seen), strict=False):
        axes.scatter([point[0] for point in some], [point[1] for point in some], color=colour, label=name, zorder=2)
        for seconds, rate, label in some:
            axes.annotate(label, (seconds, rate), textcoords="offset points", xytext=(5, -10), fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("latency of a block, s (prefill and decode; labels: rows per group x groups)")
    axes.set_ylabel("generated tokens per s")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_machines(rates: Sequence[tuple[str, str, float]], path: str, unit: str) -> None:
    """Bars of (machine, model, value), grouped by machine, on a logarithmic scale; `unit` says what is drawn."""
    figure, axes = _figure(8, 5)
    machines = list(dict.fromkeys(machine for machine, _, _ in rates))
    models = list(dict.fromkeys(model for _, model, _ in rates))
    width = BAR_WIDTH / max(1, len(models))
    for place, (model, colour) in enumerate(zip(models, COLOURS * len(models), strict=False)):
        known = {machine: value for machine, of, value in rates if of == model}
        shown = [machine for machine in machines if machine in known]
        left = [machines.index(machine) + (place - (len(models) - 1) / 2) * width for machine in shown]
        axes.bar(left, [known[machine] for machine in shown], width, label=model, color=colour)
    axes.set_xticks(range(len(machines)), machines)
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend()
    _save(figure, path)
