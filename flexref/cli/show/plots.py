"""Plots of plans, the same bytes for the same figures; matplotlib is loaded when something is drawn, not before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexref.errors import FlexrefError
from flexref.files import write_bytes

if TYPE_CHECKING:
    from flexref.planner.candidates import Candidate

METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""By kind of file, what matplotlib would write of itself or of the hour, and does not."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart: as many as there are ways of storing things."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Tell the ways of storing things apart without any colour."""

BAR_WIDTH = 0.8
"""Of all bars of one machine together, where machines are 1 apart."""

INCHES_PER_BAR = 0.45
"""Leaves room for the figure above a bar."""

HEIGHT = 5.0
"""Inches of every plot."""

WIDTHS = (8.0, 24.0)
"""Inches that a plot is wide at least and at most."""

DECADE_TICKS = (1, 2, 5)
"""Numbered ticks of every decade of a logarithmic axis."""


def check_plot(path: str, option: str) -> None:
    """Complain before anything is computed: `FlexrefError` if matplotlib is missing, or for another kind of file.

    `option` is what the user gave the path to.
    """
    if Path(path).suffix.lower() not in METADATA:
        raise FlexrefError(f"{option} writes {', '.join(METADATA)} files, found {path!r}")
    if find_spec("matplotlib") is None:
        raise FlexrefError(f"{option} needs matplotlib, which is not installed: pip install 'flexref[plots]'")


def draw_pareto(title: str, points: "Sequence[tuple[float, Candidate]]", path: str) -> None:
    """Tokens per second over the latency of a block, the best policy at each bound; `StorageError` if refused."""
    schemes: dict[str, dict[tuple[float, float], str]] = {}
    for _, candidate in points:
        prediction, policy = candidate.prediction, candidate.policy
        if prediction is not None and policy is not None:
            block_s = (prediction.prefill_s + prediction.decode_s) / prediction.blocks
            rows = f"{policy.rows_per_group} x {policy.groups_per_block}"
            schemes.setdefault(candidate.label, {})[block_s, prediction.tokens_per_s] = rows
    with _drawing(path, WIDTHS[0]) as axes:
        front = sorted(place for places in schemes.values() for place in places)
        axes.plot(*zip(*front, strict=True), color="0.75", zorder=1)
        for at, (label, places) in enumerate(sorted(schemes.items())):
            style = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
            axes.plot(*zip(*places, strict=True), linestyle="", label=label, zorder=2, **style)
            for place, rows in places.items():
                axes.annotate(rows, place, textcoords="offset points", xytext=(6, -12), fontsize=8)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.margins(x=0.1, y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("latency of a block, prefill and decode (s)")
        axes.set_ylabel("throughput (generated tokens/s)")
        axes.set_title(title)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(title="the best policy, with rows per group x groups", loc="best", fontsize=9)


def draw_machines(title: str, bars: Sequence[tuple[str, str, float | None]], path: str, unit: str) -> None:
    """Bars of (machine, model, value), grouped by machine in the order in which they come, on a logarithmic scale.

    `unit` says what is drawn; where the value is None the machine cannot run the model. `StorageError` if refused.
    """
    machines = list(dict.fromkeys(machine for machine, _, _ in bars))
    models = list(dict.fromkeys(model for _, model, _ in bars))
    known = [value for _, _, value in bars if value]
    floor = min(known, default=1.0) / 2
    width = BAR_WIDTH / max(1, len(models))
    inches = INCHES_PER_BAR * (len(models) + 1) * len(machines)
    with _drawing(path, min(max(inches, WIDTHS[0]), WIDTHS[1])) as axes:
        axes.set_yscale("log")
        axes.set_ylim(floor, max(known, default=1.0) * 2)
        for at, model in enumerate(models):
            values = {machine: value for machine, of, value in bars if of == model}
            lefts = [machines.index(machine) + (at - (len(models) - 1) / 2) * width for machine in values]
            heights = [value or 0.0 for value in values.values()]
            drawn = axes.bar(lefts, heights, width, label=model, color=COLOURS[at % len(COLOURS)], edgecolor="white")
            axes.bar_label(drawn, [_three_digits(value) for value in values.values()], padding=2, fontsize=8)
            for left, value in zip(lefts, values.values(), strict=True):
                if value is None:
                    axes.text(left, floor * 1.1, "does not fit", rotation=90, ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(machines)), machines)
        _plain_numbers(axes.yaxis)
        axes.set_ylabel(unit)
        axes.set_title(title)
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.figure.legend(title="model", loc="outside right upper")


def _three_digits(value: float | None) -> str:
    """A figure above a bar, in digits; nothing where there is no bar."""
    if not value:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


@contextmanager
def _drawing(path: str, width: float) -> Iterator[Any]:
    """Axes to draw on, whatever the user's own style is; written to `path` when the context ends."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(width, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        with rc_context({"svg.hashsalt": "flexref"}):
            kind, content = Path(path).suffix.lower(), BytesIO()
            figure.savefig(content, format=kind.removeprefix("."), dpi=150, metadata=METADATA[kind])
    write_bytes(path, content.getvalue())


def _plain_numbers(axis: Any) -> None:
    """Numbers a logarithmic axis in digits and not in powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=DECADE_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
