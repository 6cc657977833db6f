"""A benchmark's report as tables for people: seconds beside their floors, every run, the machine it was."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flexref.cli.show.lengths import lengths_in_words
from flexref.cli.show.report import print_prediction_error, print_stats, print_whole_time
from flexref.cli.streams import printable
from flexref.errors import how_many, in_gib

if TYPE_CHECKING:
    from flexref.bench.baseline import BenchComparison
    from flexref.bench.breakdown import Breakdown
    from flexref.bench.floor import BeatenFloor
    from flexref.bench.repeats import MeanInterval
    from flexref.bench.report import Report
    from flexref.bench.workload import Workload
    from flexref.check.run_tokens import TokensChecked
    from flexref.check.smoke import Passed


def print_benchmark(
    console: Console, report: "Report", passed: "Passed", checked: "tuple[TokensChecked | None, float]"
) -> None:
    """Print what was timed, on what, and how far from the floor it is. `checked`: tokens of the runs, and seconds."""
    file, workload = report.file, report.workload
    stored = file.dtype if file.scheme == "none" else file.scheme
    console.print(
        f"{printable(file.spec.name)}, {stored} weights, on {report.arguments.backend}: "
        f"{how_many(len(workload.rows), 'row')} {_lengths(workload)}",
        highlight=False,
    )
    console.print(
        f"checked first: {passed.logits} logits of a tiny model lie within their bound "
        f"(the worst error is {passed.worst_share:.2g} of it)",
        highlight=False,
    )
    if report.cut_short is not None:
        console.print(f"CUT SHORT: {report.cut_short}; no figure contains any of it", highlight=False)
    if report.runs:
        console.print(_checked(*checked), highlight=False)
        print_stats(console, report.runs[-1])
        console.print(_phases(report))
        for beaten in report.beaten():
            console.print(_beaten(beaten), highlight=False)
        if report.breakdown is not None:
            console.print(_breakdown(report.breakdown))
        print_prediction_error(console, report.prediction_error)
        interval = report.interval
        if interval is not None:
            console.print(_runs(report))
            console.print(_interval(interval, report.arguments.repeat), highlight=False)
        print_whole_time(console, report.whole)
    _print_machine(console, report)


def _checked(found: "TokensChecked | None", took_s: float) -> str:
    """Which tokens of the runs were recomputed, and what would have passed."""
    if found is None:
        return "checked afterwards: NO token of the runs (see --check-rows)"
    rows = f"{'row' if len(found.rows) == 1 else 'rows'} {', '.join(map(str, found.rows))}"
    others = f", {found.other_tokens} of them not the most probable ones" if found.other_tokens else ""
    return (
        f"checked afterwards: {how_many(found.tokens, 'token')} of {rows} (drawn by seed {found.seed}) are those of a "
        f"float32 computation, or within what rounding permits{others}; {found.possible_tokens:.3g} of the vocabulary "
        f"would have passed, on average ({took_s:.1f} s)"
    )


def _lengths(workload: "Workload") -> str:
    """How long the rows are, after their number."""
    row = workload.row
    if row is None:
        return f"that differ: {lengths_in_words(workload.rows.summary)}"
    shared = f", the first {row.shared_tokens} the same" if row.prefix else ""
    return f"of {how_many(row.prompt_tokens, 'token')}{shared}, {how_many(row.new_tokens, 'new token')} each"


def print_comparison(console: Console, compared: "BenchComparison") -> None:
    """Print every figure beside its baseline, and what else is not as it was."""
    table = Table(title=f"Beside {compared.where}", title_justify="left")
    for heading in ("", "before", "now", "ratio", "of single runs", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for change in compared.changes:
        spread = "one run" if change.least is None else f"{change.least:.3f} to {change.most:.3f}"
        figures = (f"{change.before:.4f}", f"{change.now:.4f}", f"{change.ratio:.3f}", spread)
        table.add_row(change.figure, *figures, change.verdict)
    console.print(table)
    for name, (before, now) in compared.differs.items():
        console.print(f"{name} was {before}, is {now}", highlight=False)


def _phases(report: "Report") -> Table:
    """Prefill, decode, one decode step and the whole: seconds, floor, ratio, and what sets the floor."""
    count = len(report.runs)
    title = "Seconds and their floor" if count == 1 else f"Seconds (median of {count} runs) and their floor"
    table = Table(title=title, title_justify="left")
    for heading in ("", "seconds", "floor", "ratio", "floor set by"):
        table.add_column(heading, justify="right" if heading in ("seconds", "floor", "ratio") else "left")
    assert report.floors is not None
    both_s, least = report.prefill_s + report.decode_s, report.phase_floors()
    if len(report.floors) == 1:
        rows = [("prefill and decode", both_s, least[0], report.floors[0].limit)]
    else:
        prefill, decode = report.floors
        rows = [("prefill", report.prefill_s, least[0], prefill.limit)]
        if report.steps:
            step_s = None if least[1] is None else least[1] / report.steps
            rows.append(("decode", report.decode_s, least[1], decode.limit))
            rows.append(("decode step", report.decode_s / report.steps, step_s, decode.limit))
        rows.append(("both", both_s, report.floor_figures()["floor_s"], ""))
    for name, seconds, floor, limit in rows:
        held = ("none", "", "a rate was wrong") if floor is None else (f"{floor:.4f}", f"{seconds / floor:.2f}", limit)
        table.add_row(name, f"{seconds:.4f}", *held)
    figures = report.figures(report.prefill_s, report.decode_s)
    table.caption = f"{figures['tokens_per_s']:.3f} tokens/s over prefill and decode"
    if report.workload.row is None:
        table.caption += f"; {figures['read_tokens_per_s']:.3f} read"
    if report.prediction_error is not None:
        table.caption += f"; predicted {report.prediction_error.prediction.tokens_per_s:.3f}"
    return table


def _breakdown(found: "Breakdown") -> Table:
    """Where the seconds of prefill and decode step go."""
    table = Table(title="What they are made of", title_justify="left")
    for heading in ("", "products", "attention", "other operators", "waiting for a link", "the host's gaps"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, parts in (("prefill", found.prefill), ("decode step", found.decode_step)):
        if parts is not None:
            seconds = (parts.products_s, parts.attention_s, parts.other_s, parts.link_s, parts.host_s)
            whole_s = sum(seconds)
            table.add_row(name, *(f"{part:.5f} ({part / whole_s:.0%})" for part in seconds))
    table.caption = f"by short runs of {found.passes} decode passes; the last column is what the others leave"
    return table


def _beaten(one: "BeatenFloor") -> str:
    """That a floor is none, and which rate was wrong."""
    shown = [f"{one.measured / 1e12:.3g}", f"{one.shown / 1e12:.3g} TFLOP/s"]
    if one.term != "products":
        shown = [_per_s(one.measured), _per_s(one.shown)]
    return (
        f"NO FLOOR: {one.phase} took {one.seconds:.4f} s, {one.term} alone would take {one.floor_s:.4f} s: {one.rate} "
        f"was measured as {shown[0]} and is at least {shown[1]}"
    )


def _runs(report: "Report") -> Table:
    table = Table(title="Every run", title_justify="left")
    for heading in ("run", "prefill s", "decode s", "tokens/s"):
        table.add_column(heading, justify="right")
    for number, run in enumerate(report.runs, start=1):
        table.add_row(str(number), f"{run.prefill_s:.4f}", f"{run.decode_s:.4f}", f"{run.tokens_per_s:.3f}")
    return table


def _interval(interval: "MeanInterval", repeat: int | str) -> str:
    """The mean and its interval; whether runs went on until it was narrow, if they were to."""
    half = interval.relative_width / 2
    wide = "" if interval.narrow_enough or isinstance(repeat, int) else "; NOT narrow enough when runs or time ended"
    return (
        f"mean {interval.mean:.3f} tokens/s, {interval.confidence:.0%} interval {interval.least:.3f} to "
        f"{interval.most:.3f} (+- {half:.2%}) of {interval.runs} runs{wide}"
    )


def _print_machine(console: Console, report: "Report") -> None:
    rates, here = report.rates, report.machine
    more = ""
    if rates.from_disk_bytes_per_s is not None:
        more = f", the weight file {_per_s(rates.from_disk_bytes_per_s)}"
    if rates.from_spill_bytes_per_s is not None and rates.to_spill_bytes_per_s is not None:
        more += f", a spill file {_per_s(rates.from_spill_bytes_per_s)} in, {_per_s(rates.to_spill_bytes_per_s)} out"
    if rates.host_memory_bytes_per_s is not None:
        more += f", the host's memory {_per_s(rates.host_memory_bytes_per_s)}"
    slowed = "" if here["link_gb_per_s"] is None else f"; LINKS SLOWED to {here['link_gb_per_s']:g} GB/s"
    lines = (
        f"measured: to the device {_per_s(rates.to_device_bytes_per_s)}, from it "
        f"{_per_s(rates.from_device_bytes_per_s)}, its memory {_per_s(rates.device_memory_bytes_per_s)}, products "
        f"{rates.product_flops_per_s / 1e12:.3g} TFLOP/s{more}",
        f"machine: {', '.join(here['gpu']) or 'no GPU in use'}; {here['cpu']}, {here['cpu_cores']} cores, "
        f"{in_gib(here['memory_bytes'])}{slowed}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )
    for line in lines:
        console.print(line, highlight=False)


def _per_s(rate: float) -> str:
    return f"{in_gib(int(rate))}/s"
