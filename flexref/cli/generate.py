"""`flexref generate`: prompts in, text out, under memory budgets; parses, calls the engine, prints."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.show.outputs import check_writable

if TYPE_CHECKING:
    from rich.progress import Progress

    from flexref.block.trace import Trace
    from flexref.cli.show.progress import EventDisplay
    from flexref.engine.engine import Engine
    from flexref.engine.generation import Request
    from flexref.engine.results import Generation, StreamedToken
    from flexref.policy import Policy
    from flexref.simulator.prediction_error import PredictionError
    from flexref.text.prompts import Prompt

LOGPROBS_HELP = "With --json: the N most probable tokens at every place, before temperature, top-k and top-p."

MACHINE_HELP = "A machine's file, or the name of a known one, to choose a policy for; default: this one, measured once."

PERCENT_HELP = "Shares in percent, the rest on disk: weights, cache, activations, each on device and on host."


@click.command("generate")
@click.option("--model", required=True, metavar="FILE|demo", help="A weight file, or the built-in model.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be given several times.")
@click.option("--input", "input_file", metavar="FILE", help="Prompts, one a line, or JSON lines with `prompt`.")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(min=1), help="Per prompt.")
@click.option("--ignore-eos", is_flag=True, help="Go on behind the end-of-sequence token.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End a row before this text; repeatable.")
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", default=0, show_default=True, help="Keep the k most probable tokens; 0: all.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep the most probable tokens up to this probability.")
@click.option("--logprobs", default=0, type=click.IntRange(min=0), metavar="N", help=LOGPROBS_HELP)
@click.option("--seed", default=0, show_default=True, help="Each row draws from the seed and its own number.")
@click.option("--backend", default="numpy", show_default=True, help="The port to run on.")
@click.option("--device-mem-gib", type=float, help="Budget of the device; default: what is free.")
@click.option("--host-mem-gib", type=float, help="Budget of the host; default: what is free.")
@click.option("--disk-dir", metavar="DIR", help="Where cache and activations may spill; default: the temporary folder.")
@click.option("--policy", "policy_file", metavar="FILE", help="A policy as JSON; default: chosen from the budgets.")
@click.option("--percent", nargs=6, type=float, metavar="W_DEV W_HOST C_DEV C_HOST A_DEV A_HOST", help=PERCENT_HELP)
@click.option("--machine", metavar="FILE|NAME", help=MACHINE_HELP)
@click.option("--rows-per-group", type=click.IntRange(min=1), help="Rows that are computed together.")
@click.option("--groups", "groups_per_block", type=click.IntRange(min=1), help="Groups that share a fetched layer.")
@click.option("--attention-on", type=click.Choice(["device", "host"]), help="Where an offloaded cache is attended to.")
@click.option("--quantize-cache", is_flag=True, help="Keep the KV cache in 4-bit groups.")
@click.option("--overlap/--no-overlap", default=None, help="Move beside computing, or one thing after another.")
@click.option("--trace", "trace_file", metavar="FILE", help="Write a Chrome trace of every copy and computation.")
@click.option("--json", "as_json", is_flag=True, help="Print outputs and stats as one JSON object.")
def command(model: str, as_json: bool, trace_file: str | None, **options: Any) -> None:
    """Continue prompts with an OPT model whose weights, KV cache and activations lie on device, host and disk.

    Text goes to stdout, progress and the tables of tiers and links to stderr, with what was predicted beside what was
    measured.
    """
    from flexref.block.trace import Trace
    from flexref.cli.show.progress import EventDisplay
    from flexref.loading import advisor, open_engine

    if options["logprobs"] and not as_json:
        raise click.UsageError("--logprobs belongs to --json")
    if trace_file is not None:
        check_writable(trace_file)
    policy, keep = policies(options)
    request, display = request_of(options), EventDisplay()
    settling = advisor(policy, options["machine"], keep)
    engine = open_engine(
        model,
        settling,
        backend=options["backend"],
        device_mem_gib=options["device_mem_gib"],
        host_mem_gib=options["host_mem_gib"],
        disk_dir=options["disk_dir"],
        on_event=display,
    )
    with engine:
        prompts = prompts_of(options["prompts"], options["input_file"], engine.file.spec.vocabulary)
        trace = Trace(time.perf_counter()) if trace_file else None
        generation = _run(engine, prompts, request, _Shown(display, trace, as_json))
        prediction_error = settling.judge(engine.session, generation)
    if trace is not None and trace_file is not None:
        trace.write(trace_file)
    _print(generation, prediction_error, as_json, streamed=len(prompts) == 1)


def policies(options: dict[str, Any]) -> "tuple[Policy | None, dict[str, Any]]":
    """The policy that the options describe, None if one is to be chosen, and the fields that a chosen one must keep."""
    from flexref.policy import Policy

    given: dict[str, Any] = {
        name: options[name]
        for name in ("rows_per_group", "groups_per_block", "attention_on", "overlap")
        if options[name] is not None
    }
    if options["quantize_cache"]:
        given["cache_scheme"] = "int4"
    if options["policy_file"] and options["percent"]:
        raise click.UsageError("--policy and --percent exclude each other")
    if options["policy_file"]:
        return Policy.read(options["policy_file"]).changed(**given), {}
    if options["percent"]:
        return Policy.from_percent(options["percent"], **given), {}
    return None, given


def request_of(options: dict[str, Any]) -> "Request":
    """What to do with every prompt."""
    from flexref.engine.generation import Request
    from flexref.sampling.settings import SamplingSettings

    sampling = SamplingSettings(options["temperature"], options["top_k"], options["top_p"], options["seed"])
    return Request(options["max_new_tokens"], sampling, options["stops"], options["ignore_eos"], options["logprobs"])


def prompts_of(texts: tuple[str, ...], input_file: str | None, vocabulary: int) -> "list[Prompt]":
    """The prompts of the command line, then those of the file."""
    from flexref.text.prompts import Prompt, read_prompts

    if not texts and input_file is None:
        raise click.UsageError("give --prompt or --input")
    prompts = [Prompt(text=text) for text in texts]
    return prompts + (read_prompts(input_file, vocabulary) if input_file is not None else [])


@dataclass(frozen=True, slots=True)
class _Shown:
    """How a run is shown: who hears of its events, the trace if one is kept, and whether a reader wants JSON."""

    display: "EventDisplay"
    trace: "Trace | None"
    as_json: bool


def _run(engine: "Engine", prompts: "list[Prompt]", request: "Request", shown: _Shown) -> "Generation":
    """Generate with progress on stderr; a single prompt's text is streamed to stdout as it comes."""
    streamed = len(prompts) == 1 and not shown.as_json
    opening = [prompts[0].text or ""]
    tokens = None if streamed else len(prompts) * request.max_new_tokens
    with _progress(engine, shown.display, tokens) as progress:

        def show(token: "StreamedToken") -> None:
            if not streamed:
                progress.advance(progress.task_ids[-1])
                return
            if opening:
                progress.stop()  # the text takes the place of the bars
                click.echo(opening.pop(), nl=False)
            click.echo(token.text if engine.tokenizer is not None else f"{token.token_id} ", nl=False)
            sys.stdout.flush()

        generation = engine.generate(prompts, request, trace=shown.trace, on_token=show)
    if streamed:
        click.echo()
    return generation


@contextmanager
def _progress(engine: "Engine", display: "EventDisplay", tokens: int | None) -> "Iterator[Progress]":
    """Bars on stderr, where that is a terminal: MiB of weights that were loaded, and `tokens` if they are counted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        loading = progress.add_task("loading MiB", total=engine.file.nbytes >> 20)
        if tokens is not None:
            progress.add_task("tokens", total=tokens)
        loaded_bytes = 0

        def on_loaded(nbytes: int) -> None:
            nonlocal loaded_bytes
            loaded_bytes += nbytes
            progress.update(loading, completed=loaded_bytes >> 20)

        with display.loading(on_loaded):
            yield progress


def _print(generation: "Generation", prediction_error: "PredictionError | None", as_json: bool, streamed: bool) -> None:
    from rich.console import Console

    from flexref.cli.show.report import print_prediction_error, print_stats

    if as_json:
        predicted = None if prediction_error is None else prediction_error.to_json()
        click.echo(json.dumps({**generation.to_json(), "predicted": predicted}))
        return
    if not streamed:
        for number, output in enumerate(generation.outputs, start=1):
            body = " ".join(map(str, output.token_ids)) if output.text is None else output.text
            prompt = output.prompt if isinstance(output.prompt, str) else ""
            click.echo(f"--- {number} ({output.finish_reason})\n{prompt}{body}")
    console = Console(stderr=True)
    print_stats(console, generation.stats)
    print_prediction_error(console, prediction_error)
