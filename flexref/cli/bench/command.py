"""`flexref bench`: times jobs on random or real weights and holds them against the floor; parses, calls, prints."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import MODEL, TEXT
from flexref.cli.bench.formats import FORMATS, Add, printing
from flexref.cli.bench.tokens import check_runs
from flexref.cli.completion import files, sizes, suites
from flexref.cli.options import BUDGETS, ROWS, asked_of, check_lengths, computing_port, option, options, was_given
from flexref.cli.process import whole_time
from flexref.cli.show.outputs import check_outputs, check_writable, tracing

if TYPE_CHECKING:
    from flexref.bench.baseline import Baseline, BenchComparison
    from flexref.bench.benchmark import Benchmark
    from flexref.bench.history import BenchHistory
    from flexref.bench.report import Report
    from flexref.bench.suites import Arguments
    from flexref.check.run_tokens import TokensChecked
    from flexref.check.smoke import Passed
    from flexref.engine.wall import Wall

LOG = logging.getLogger(__name__)

MODEL_HELP = "A size (6.7b, opt-175b, tiny ...), whose weights are random, or a weight file."

REPLACED = (("percent", "policy"), ("prompt_len", "lengths"), ("gen_len", "lengths"), ("rows", "lengths"))
"""Of a suite's benchmark all of a group give way to an option for any of it."""


class Runs(click.IntRange):
    """How often to run: a number, or `auto`."""

    def __init__(self) -> None:
        super().__init__(1, 10_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word; a usage error for anything else."""
        return value if value == "auto" else super().convert(value, param, ctx)


@click.command("bench")
@click.option(
    "--suite",
    metavar="NAME",
    shell_complete=suites,
    help="A named suite; other options given beside it change its benchmarks.",
)
@click.option("--list", "list_suites", is_flag=True, help="List the suites and exit.")
@option("--model", required=False, type=MODEL, metavar="SIZE|FILE", shell_complete=sizes, help=MODEL_HELP)
@click.option("--random-weights", is_flag=True, help="Random weights in place of a file's own.")
@option("--dtype", help="The type of random weights; default: float16.")
@click.option(
    "--quantize-weights",
    is_flag=False,
    flag_value="int4",
    metavar="[int4|int8]",
    type=click.Choice(["int4", "int8"]),
    help="Random weights in groups of 4-bit codes (int4, or nothing after the option) or of 8-bit ones.",
)
@option("--prompt-len", help="Tokens of every prompt; default: 512.")
@option("--gen-len", help="New tokens for every row; default: 32.")
@option("--rows", help="Rows of the job; default: 8.")
@option("--lengths", names=("lengths",))
@options("--rows-per-group", "--groups", "--percent", "--policy", "--machine", "--quantize-cache")
@options("--attention-on", "--host-attention-percent")
@options("--overlap", "--row-invariant", "--share-prefixes", "--read-ahead-gib", "--graphs", *BUDGETS)
@option("--backend", default=None, show_default=None, help="The port to run on; default: numpy.")
@click.option(
    "--repeat",
    type=Runs(),
    metavar="[N|auto]",
    help="How often to run; every run is shown, and the median. auto: at least 5 times, until the 95 % interval of the "
    "mean of tokens/s is at most 2 % of it wide, and no longer than 50 runs or 600 seconds.",
)
@option("--seed", type=click.IntRange(min=0), help="The seed of random weights and prompts; default: 0.")
@click.option(
    "--link-gb-per-s",
    type=click.FloatRange(1e-3),
    metavar="RATE",
    help="Slow copies between host and device down to so many GB/s in either direction, by copying more, so that a "
    "slow bus can be tried on a fast one.",
)
@click.option(
    "--breakdown",
    is_flag=True,
    help="Show what the seconds are made of: the device's by kind, links that it waits for, the host's gaps; takes one "
    "or two short runs more.",
)
@click.option(
    "--check-rows",
    type=click.IntRange(0, ROWS.max),
    help="Rows, drawn by --seed, whose tokens are recomputed after the runs, 0: none; default: up to 4, as few as take "
    "a while, none where one would take many minutes.",
)
@click.option(
    "--baseline",
    "baseline_file",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Compare with the same benchmark in what an earlier `--json` has printed; the machine must be the same.",
)
@click.option(
    "--history",
    "history_file",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Keep every benchmark that ended in this SQLite file, which is made if there is none; see `bench compare`.",
)
@click.option("--label", type=TEXT, help="What the history calls this call's benchmarks, as a commit's name.")
@option("--trace", help="Write a trace of the last run, in the Trace Event format; costs a little.")
@option("--force")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    help="How to print: tables for people (the default), one Markdown table, CSV, a JSON list, or JSON lines.",
)
@option("--json", help="The same as --format jsonl: one JSON object per benchmark, each on a line.")
def command(
    suite: str | None,
    list_suites: bool,
    baseline_file: str | None,
    trace_file: str | None,
    force: bool,
    output_format: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Time prefill and decode of whole jobs, beside the least time that this machine allows (the floor).

    First a tiny model runs on the same port with the same options and must give the right logits; if it does not,
    nothing is timed. Then the machine's links, memory and products are measured, weights are loaded, and every
    run is a full one: an interrupted run is reported as such and gives no figures. At last tokens of the timed runs
    themselves are recomputed: if any is wrong, there are no figures.
    """
    context = click.get_current_context()
    history_file, label = values.pop("history_file"), values.pop("label")
    given = {name: value for name, value in values.items() if was_given(context, name)}
    if list_suites:
        _list()
        return
    if as_json and output_format not in (None, "jsonl"):
        raise click.UsageError("--json and --format exclude each other")
    output_format = "jsonl" if as_json else output_format or "table"
    if baseline_file is not None and output_format in ("md", "csv"):
        raise click.UsageError(f"--format {output_format} has no place for --baseline: use table, json or jsonl")
    if label is not None and history_file is None:
        raise click.UsageError("--label is for --history")
    if "lengths" in given:
        check_lengths(context)
    asked_of(values)
    benchmarks = _benchmarks(suite, given)
    traces = [_numbered(trace_file, number) for number in range(1, len(benchmarks) + 1)]
    inputs = [path for asked in benchmarks for path in (asked.model, asked.policy, asked.machine, asked.lengths)]
    outputs = {f"trace {number}": path for number, path in enumerate(traces, start=1)}
    check_outputs(outputs, [*inputs, baseline_file], force=force)
    baselines = _baselines(baseline_file, benchmarks)
    history = None if history_file is None else _history(history_file)
    wall: Wall | None = whole_time()
    with nullcontext() if output_format == "table" else printing(output_format) as add:
        for arguments, trace, baseline in zip(benchmarks, traces, baselines, strict=True):
            printed = _run(arguments, {"suite": suite}, trace, (add, baseline), wall)
            wall = None  # what comes before the next benchmark is no part of it
            if printed["cut_short"] is not None:
                raise KeyboardInterrupt  # what is left of the suite is not run, and the exit code says so
            if history is not None:
                history.add(printed, label)


def _numbered(path: str | None, number: int) -> str | None:
    """Where the trace of a suite's benchmark goes; the first one's to the path itself."""
    return path if path is None or number == 1 else f"{path}.{number}"


def _benchmarks(suite: str | None, given: Mapping[str, Any]) -> "list[Arguments]":
    """What is asked for: the suite's benchmarks with the given options in place of theirs, or the options alone."""
    from flexref.bench.suites import Arguments, read_suites

    if suite is None:
        if "model" not in given:
            raise click.UsageError("give --model or --suite; --list shows the suites")
        return [Arguments.from_mapping(given, "the options")]
    suites = read_suites()
    if suite not in suites:
        raise click.UsageError(f"no suite {suite!r}; known: {', '.join(suites)}")
    replaced = [name for group in REPLACED for name in group if any(other in given for other in group)]
    kept = [{name: run[name] for name in run if name not in replaced} for run in suites[suite].runs]
    return [Arguments.from_mapping({**run, **given}, f"suite {suite!r} with the options") for run in kept]


def _baselines(path: str | None, benchmarks: "list[Arguments]") -> "list[Baseline | None]":
    """What each benchmark is to be compared with."""
    if path is None:
        return [None] * len(benchmarks)
    from flexref.bench.baseline import baseline_of, read_baselines

    earlier = read_baselines(path)
    return [baseline_of(earlier, arguments) for arguments in benchmarks]


def _history(path: str) -> "BenchHistory":
    """The history to add to, found out about before anything is timed."""
    from flexref.bench.history import BenchHistory

    check_writable(path)
    return BenchHistory(path)


def _list() -> None:
    from flexref.bench.suites import read_suites

    suites = read_suites()
    width = max(map(len, suites))
    for suite in suites.values():
        click.echo(f"{suite.name:{width}} {suite.about}")


def _run(
    arguments: "Arguments",
    about: Mapping[str, Any],
    trace_file: str | None,
    how: "tuple[Add | None, Baseline | None]",
    wall: "Wall | None",
) -> dict[str, Any]:
    """Run one benchmark, print it, and return what --json prints of it.

    `how`: what prints it, None for tables; and what it is compared with.
    `wall`: the whole time of the command, for the first benchmark.
    """
    from flexref.backend.registry import start_device

    start_device(arguments.backend)  # and load the rest meanwhile
    from flexref.bench.benchmark import Benchmark
    from flexref.bench.repeats import runs_in_words
    from flexref.cli.show.progress import progress
    from flexref.engine.wall import WallPart

    if wall is not None:
        wall.turn_to(WallPart.OTHER)
    add, baseline = how
    with tracing(trace_file) as trace:
        with (
            progress("preparing") as shown,
            Benchmark(arguments, lambda: computing_port(arguments.backend), shown, wall) as benchmark,
        ):
            if baseline is not None:
                baseline.check(benchmark.about())
            shown.begin("checking the port on a tiny model")
            passed = _check(benchmark)
            shown.begin("measuring rates of this machine")

            def begin(number: int) -> None:
                LOG.info("run %d of %s", number, runs_in_words(arguments.repeat))
                shown.begin(f"run {number} of {runs_in_words(arguments.repeat)}", detail=benchmark.how_far)

            report = benchmark.run(trace=trace, on_run=begin)
            tokens, took_s = check_runs(benchmark, report, shown)
        compared = None if baseline is None or not report.runs else baseline.compare(report.to_json())
        check: dict[str, Any] = {"check_logits": passed.logits, "check_worst_share": passed.worst_share}
        check |= {"tokens_checked": None if tokens is None else asdict(tokens), "tokens_check_s": took_s}
        beside = {} if compared is None else {"baseline": compared.to_json()}
        printed = {**about, **report.to_json(), **check, **beside}
        if add is not None:
            add(printed)
        else:
            _print(report, passed, (tokens, took_s), compared)
    return printed


def _check(benchmark: "Benchmark") -> "Passed":
    """Refuse to time a port that is wrong."""
    from flexref.check.smoke import check

    file, arguments = benchmark.file, benchmark.arguments
    return check(
        benchmark.make_backend, benchmark.policy, scheme=file.layout, dtype=file.dtype, disk_dir=arguments.disk_dir
    )


def _print(
    report: "Report",
    passed: "Passed",
    checked: "tuple[TokensChecked | None, float]",
    compared: "BenchComparison | None",
) -> None:
    from flexref.cli.show.bench_report import print_benchmark, print_comparison
    from flexref.cli.show.console import table_console

    print_benchmark(table_console(), report, passed, checked)
    if compared is not None:
        print_comparison(table_console(), compared)
