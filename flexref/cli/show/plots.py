"""Plots of plans, the same bytes for the same figures; matplotlib is loaded when something is drawn, not before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from flexref.errors import FlexrefError, install_hint
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
"""Tell what is drawn apart without any colour; of more things than colours every eight have them in another order."""

HEIGHT = 5.0
"""Inches of a plot, and of all that a dot plot has beside its lines."""

WIDTH = 8.0
"""Inches of every plot: in 800 pixels the smallest letters are still read."""

LINE_HEIGHT, FRAME_HEIGHT, MOST_HEIGHT = 0.27, 1.9, 24.0
"""Inches of a line of a dot plot, of what is above and below all lines, and of a plot at most."""

ROW_SHARE = 0.8
"""Of the room of a machine that its lines take, where machines are 1 apart."""

TITLE_LETTERS, TITLE_POINTS, LINE_POINTS = 92, 8, 10
"""Letters of a line below a title, and how high a title stands above the axes, with every such line."""

DECADE_TICKS, DECADES_OF_MANY = (1, 2, 5), 2.5
"""Numbered ticks of every decade of a logarithmic axis; of one that spans more decades only the first."""


def check_plot(path: str, option: str) -> None:
    """Complain before anything is computed: `FlexrefError` if matplotlib is missing, or for another kind of file.

    `option` is what the user gave the path to.
    """
    if Path(path).suffix.lower() not in METADATA:
        raise FlexrefError(f"{option} writes {', '.join(METADATA)} files, found {path!r}")
    if find_spec("matplotlib") is None:
        raise FlexrefError(f"{option} needs matplotlib, which is not installed: {install_hint('plots')}")


def draw_pareto(title: str, points: "Sequence[tuple[float, Candidate]]", path: str) -> None:
    """Tokens per second over the latency of a block, the best policy at each bound; `StorageError` if refused.

    Of `title`, the first line says what is shown, what follows about what.
    """
    schemes: dict[str, dict[tuple[float, float], str]] = {}
    for _, candidate in points:
        prediction, policy = candidate.prediction, candidate.policy
        if prediction is not None and policy is not None:
            rows = f"{policy.rows_per_group} x {policy.groups_per_block}"
            schemes.setdefault(candidate.label, {})[prediction.block_s, prediction.tokens_per_s] = rows
    with drawing(path, title, HEIGHT) as axes:
        front = sorted(place for places in schemes.values() for place in places)
        axes.plot(*zip(*front, strict=True), color="0.75", zorder=1)
        for at, (label, places) in enumerate(sorted(schemes.items())):
            axes.plot(*zip(*places, strict=True), linestyle="", label=label, zorder=2, **style(at))
            for place, rows in places.items():
                axes.annotate(rows, place, textcoords="offset points", xytext=(6, -12), fontsize=8)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis, [block_s for block_s, _ in front])
        axes.margins(x=0.1, y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("latency of a block, prefill and decode (s)")
        axes.set_ylabel("throughput (generated tokens/s)")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(title="the best policy, with rows per group x groups", loc="best", fontsize=9)


def draw_machines(title: str, found: Sequence[tuple[str, str, float | str]], path: str, unit: str) -> None:
    """A dot for every (machine, model, value), a line each, by machine in the order in which they come.

    `unit` says what is drawn, on a logarithmic axis. In place of a value may stand why there is none, which is written
    on its line. `StorageError` if refused.
    """
    machines = list(dict.fromkeys(machine for machine, _, _ in found))
    models = list(dict.fromkeys(model for _, model, _ in found))
    values = [value for _, _, value in found if not isinstance(value, str) and value > 0]
    low, high = min(values, default=1.0) / 1.6, max(values, default=1.0) * 1.6
    height = FRAME_HEIGHT + LINE_HEIGHT * (len(models) + 0.5) * len(machines)
    with drawing(path, title, min(height, MOST_HEIGHT)) as axes:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        for at, model in enumerate(models):
            offset = (at - (len(models) - 1) / 2) * ROW_SHARE / len(models)
            axes.plot([], [], linestyle="", label=model, **style(at))
            for machine, value in ((machine, value) for machine, of, value in found if of == model):
                line = machines.index(machine) + offset
                if isinstance(value, str) or value <= 0:
                    about = value if isinstance(value, str) else _three_digits(value)
                    about = about if len(models) == 1 else f"{model}: {about}"
                    axes.text(low, line, f" {about}", va="center", fontsize=8, color="0.4", style="italic")
                    continue
                axes.plot([value], [line], linestyle="", **style(at))
                place = {"textcoords": "offset points", "xytext": (7, 0), "va": "center", "fontsize": 8}
                axes.annotate(_three_digits(value), (value, line), **place)
        axes.set_yticks(range(len(machines)), machines)
        axes.set_ylim(len(machines) - 0.4, -0.6)  # the first on top
        for between in range(1, len(machines)):
            axes.axhline(between - 0.5, color="0.9", linewidth=0.8, zorder=0)
        _plain_numbers(axes.xaxis, values)
        axes.set_xlabel(unit)
        axes.grid(visible=True, axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        if len(models) > 1:
            axes.figure.legend(title="model", loc="outside right upper", fontsize=9)


def style(number: int) -> dict[str, str]:
    """Colour and marker of what is drawn as number so and so: 64 pairs, all different."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def _three_digits(value: float) -> str:
    """A figure beside its dot."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


@contextmanager
def drawing(path: str, title: str, height: float) -> Iterator[Any]:
    """Axes to draw on, whatever the user's own style is; written to `path` when the context ends.

    The first line of `title` stands in large letters, the others below it in small ones.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        _write_title(axes, title)
        yield axes
        with rc_context({"svg.hashsalt": "flexref"}):
            kind, content = Path(path).suffix.lower(), BytesIO()
            figure.savefig(content, format=kind.removeprefix("."), dpi=150, metadata=METADATA[kind])
    write_bytes(path, content.getvalue())


def _write_title(axes: Any, title: str) -> None:
    first, *others = title.splitlines()
    about = [part for line in others for part in wrap(line, TITLE_LETTERS)]
    axes.set_title("\n".join(about), loc="left", fontsize=8, color="0.35")
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 12, "va": "bottom"}
    above = TITLE_POINTS + LINE_POINTS * len(about)
    axes.annotate("\n".join(wrap(first, TITLE_LETTERS * 2 // 3)), (0, 1), xytext=(0, above), **place)


def _plain_numbers(axis: Any, values: Sequence[float]) -> None:
    """Numbers a logarithmic axis in digits and not in powers of ten, sparsely where `values` span many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    wide = bool(values) and max(values) / min(values) > 10**DECADES_OF_MANY
    axis.set_major_locator(LogLocator(subs=DECADE_TICKS[:1] if wide else DECADE_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
