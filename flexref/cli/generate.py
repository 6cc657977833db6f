"""`flexref generate`: prompts in, text out, under memory budgets; parses, calls the engine, prints."""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import TEXT
from flexref.cli.logs import shows_progress
from flexref.cli.options import BUDGETS, asked_of, check_prompts, option, options, prompts_of
from flexref.cli.process import whole_time
from flexref.cli.show.outputs import check_outputs, tracing

if TYPE_CHECKING:
    from flexref.architecture.stages import Stage
    from flexref.block.tracing.trace import Trace
    from flexref.cli.show.progress import Progress
    from flexref.engine.engine import Engine
    from flexref.engine.request import Request
    from flexref.engine.results import Generation, StreamedToken
    from flexref.sampling.settings import SamplingSettings
    from flexref.simulator.prediction_error import PredictionError
    from flexref.text.prompts import Prompt

INPUT_HELP = """Prompts, one a line, or JSON lines with `prompt`, as text or token ids, maybe `id`, and what this row
has in place of the options: max_new_tokens, temperature, top_k, top_p, seed, stop; -: standard input."""

LOGPROBS_HELP = "With --json: the N most probable tokens at every place, before temperature, top-k and top-p."


@click.command("generate")
@option("--model")
@option("--prompt", help="A prompt; may be given several times.")
@option("--input", help=INPUT_HELP)
@option("--max-new-tokens", default=32)
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-sequence token.")
@click.option("--stop", "stops", multiple=True, type=TEXT, help="End a row before this text; repeatable.")
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", default=0, show_default=True, help="Keep the k most probable tokens; 0: all.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep the most probable tokens up to this probability.")
@click.option("--logprobs", default=0, type=click.IntRange(0, 1 << 20), metavar="N", help=LOGPROBS_HELP)
@option("--seed", default=0, show_default=True, help="Each row draws from the seed and its own number.")
@options("--backend", *BUDGETS, "--policy", "--percent", "--machine", "--rows-per-group", "--groups")
@options("--attention-on", "--host-attention-percent", "--quantize-cache")
@options("--overlap", "--row-invariant", "--share-prefixes", "--read-ahead-gib")
@option("--graphs")
@option("--trace", help="Write a trace of every copy and computation, in the Trace Event format.")
@option("--force")
@option("--json", help="Print outputs and stats as one JSON object.")
def command(model: str, as_json: bool, trace_file: str | None, **given: Any) -> None:
    """Continue prompts with an OPT model whose weights, KV cache and activations lie on device, host and disk.

    Text goes to stdout, progress and the tables of tiers and links to stderr, with predictions that a job of a second
    or more has missed.
    """
    if given["logprobs"] and not as_json:
        raise click.UsageError("--logprobs belongs to --json")
    check_prompts(given)
    sampling_of(given)
    inputs = (model, given["input_file"], given["policy"], given["machine"])
    check_outputs({"--trace": trace_file}, inputs, force=given["force"])
    asked = asked_of(given)

    from flexref.backend.registry import start_device

    start_device(given["backend"])  # and load the rest meanwhile

    from flexref.cli.show.progress import progress
    from flexref.engine.request import with_settings
    from flexref.engine.wall import WallPart
    from flexref.loading import advisor, open_engine

    request, wall = request_of(given), whole_time()
    with wall.part(WallPart.MACHINE):
        settling = advisor(asked.policy, given["machine"], asked.keep)
    with tracing(trace_file) as trace:
        with (
            progress("choosing a policy") as shown,
            open_engine(
                model,
                settling,
                backend=given["backend"],
                **asked.budgets,
                on_event=shown,
                wall=wall,
                graphs=given["graphs"],
            ) as engine,
        ):
            wall.turn_to(WallPart.OTHER)
            prompts = prompts_of(
                given["prompts"],
                given["input_file"],
                engine.file.spec.vocabulary,
                lambda settings: with_settings(request, settings),
            )
            generation = _run(engine, prompts, request, _Shown(shown, trace, as_json))
            prediction_error = settling.judge(engine.session, generation)
        _print(generation, prediction_error, as_json, streamed=len(prompts) == 1)


def request_of(given: dict[str, Any]) -> "Request":
    """What to do with every prompt."""
    from flexref.engine.request import Request

    return Request(given["max_new_tokens"], sampling_of(given), given["stops"], given["ignore_eos"], given["logprobs"])


def sampling_of(given: dict[str, Any]) -> "SamplingSettings":
    """How the next token is chosen; `WrongCall` for values that no model can serve."""
    from flexref.errors import PromptError, WrongCall
    from flexref.sampling.settings import SamplingSettings

    try:
        return SamplingSettings(given["temperature"], given["top_k"], given["top_p"], given["seed"])
    except PromptError as error:
        raise WrongCall(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Shown:
    """How a run is shown: its progress, the trace if one is kept, and whether a reader wants JSON."""

    progress: "Progress"
    trace: "Trace | None"
    as_json: bool


def _run(engine: "Engine", prompts: "list[Prompt]", request: "Request", shown: _Shown) -> "Generation":
    """Generate with progress on stderr; a single prompt's text is streamed to stdout as it comes."""
    streamed = len(prompts) == 1 and not shown.as_json
    opening = [prompts[0].text or ""]
    at = _Place()
    most = sum((prompt.settings or {}).get("max_new_tokens", request.max_new_tokens) for prompt in prompts)
    shown.progress.begin("tokens", most, "tokens", at.text)

    def show(token: "StreamedToken") -> None:
        shown.progress.advance()
        if not streamed:
            return
        if opening:
            shown.progress.stop()  # the text takes the place of the bar
            click.echo(opening.pop(), nl=False)
        click.echo(token.text if engine.tokenizer is not None else f"{token.token_id} ", nl=False)
        sys.stdout.flush()

    generation = engine.generate(prompts, request, trace=shown.trace, on_token=show, on_place=at.visit)
    if streamed:
        click.echo()
    return generation


class _Place:
    """Where a job is now: every visit is noted, and made words of when they are shown."""

    def __init__(self) -> None:
        self._visit: tuple[Stage, int, int] | None = None

    def visit(self, stage: "Stage", group: int, turn: int) -> None:
        """The job is at this stage, group and pass (an `OnVisit`, which is told of replayed ones too)."""
        self._visit = stage, group, turn

    def text(self) -> str:
        """It in words; nothing before the first."""
        if self._visit is None:
            return ""
        stage, group, turn = self._visit
        return f"pass {turn + 1}, {stage.name}, group {group + 1}"


def _print(generation: "Generation", prediction_error: "PredictionError | None", as_json: bool, streamed: bool) -> None:
    if as_json:
        predicted = None if prediction_error is None else prediction_error.to_json()
        click.echo(json.dumps({**generation.to_json(), "predicted": predicted}))
        return
    if not streamed:
        for number, output in enumerate(generation.outputs, start=1):
            body = " ".join(map(str, output.token_ids)) if output.text is None else output.text
            prompt = output.prompt if isinstance(output.prompt, str) else ""
            name = number if output.id is None else f"{number}: {output.id}"
            click.echo(f"--- {name} ({output.finish_reason})\n{prompt}{body}")
    if not shows_progress():
        return

    from flexref.cli.show.console import table_console
    from flexref.cli.show.report import print_prediction_error, print_stats, print_whole_time

    console = table_console(err=True)
    print_stats(console, generation.stats)
    print_whole_time(console, generation.stats)
    print_prediction_error(console, prediction_error)
