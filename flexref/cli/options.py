"""Options that more than one command has, each declared once, and what they ask of an engine; it runs nothing."""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from flexref.cli.arguments import AHEAD_GIB, BACKEND, BUDGET_GIB, MACHINE, TEXT, WEIGHT_FILE
from flexref.cli.completion import files, folders, machines, ports, weight_files
from flexref.errors import how_many
from flexref.units import GIB

if TYPE_CHECKING:
    from flexref.backend.protocol import Backend
    from flexref.engine.engine import Engine
    from flexref.engine.events import OnEvent
    from flexref.engine.wall import Wall
    from flexref.policy import Asked
    from flexref.text.prompt_settings import Settings
    from flexref.text.prompts import Prompt

LOG = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

TOKENS = click.IntRange(1, 1 << 24)
"""Tokens of a row: a thousand times what any model of the family has positions for."""

ROWS = click.IntRange(1, 1 << 20)
"""Rows that are really there, in a group, a block or a benchmark."""

DECLARED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "--model": {
            "required": True,
            "type": WEIGHT_FILE,
            "metavar": "FILE|demo",
            "shell_complete": weight_files,
            "help": "A weight file, or the built-in model.",
        },
        "--prompt": {"names": ("prompts",), "multiple": True, "type": TEXT},
        "--input": {
            "names": ("input_file",),
            "type": TEXT,
            "metavar": "FILE|-",
            "shell_complete": files,
            "help": "Prompts, one a line, or JSON lines with `prompt`, as text or token ids, and maybe `id`; "
            "-: standard input.",
        },
        "--max-new-tokens": {"type": TOKENS, "show_default": True, "help": "The most new tokens of every prompt."},
        "--seed": {},
        "--dtype": {"type": click.Choice(["float16", "float32"])},
        "--backend": {
            "type": BACKEND,
            "default": "numpy",
            "show_default": True,
            "shell_complete": ports,
            "help": "The port to run on.",
        },
        "--device-mem-gib": {"type": BUDGET_GIB, "help": "Budget of the device; default: what is free."},
        "--host-mem-gib": {"type": BUDGET_GIB, "help": "Budget of the host; default: what is free."},
        "--disk-dir": {
            "type": TEXT,
            "metavar": "DIR",
            "shell_complete": folders,
            "help": "Where cache and activations may spill; default: the temporary folder.",
        },
        "--policy": {
            "type": TEXT,
            "metavar": "FILE",
            "shell_complete": files,
            "help": "A policy as JSON; default: chosen from the budgets.",
        },
        "--percent": {
            "nargs": 6,
            "type": float,
            "metavar": "W_DEV W_HOST C_DEV C_HOST A_DEV A_HOST",
            "help": "Shares in percent, the rest on disk: weights, cache, activations, each on device and on host.",
        },
        "--machine": {
            "type": MACHINE,
            "metavar": "FILE|NAME",
            "shell_complete": machines,
            "help": "A machine's file, or the name of a known one, to choose a policy for; default: this one, measured "
            "once, if a job does not fit on its device.",
        },
        "--rows-per-group": {"type": ROWS, "help": "Rows that are computed together."},
        "--groups": {"type": ROWS, "help": "Groups that share a fetched layer."},
        "--attention-on": {
            "type": click.Choice(["device", "host"]),
            "help": "Where an offloaded cache is attended to; default: on the device, or wherever it is faster if a "
            "row's tokens do not depend on it.",
        },
        "--host-attention-percent": {
            "type": click.FloatRange(0, 100),
            "metavar": "PERCENT",
            "help": "With --attention-on host: so many of the rows with an offloaded cache are attended to there, and "
            "the others' caches cross the link; default: all, 100.",
        },
        "--quantize-cache": {"is_flag": True, "help": "Keep the KV cache in 4-bit groups."},
        "--overlap": {
            "names": ("--overlap/--no-overlap",),
            "default": None,
            "help": "Move beside computing, or one thing after another.",
        },
        "--row-invariant": {
            "names": ("--row-invariant/--no-row-invariant",),
            "default": None,
            "help": "A row's tokens depend on the row alone, to the bit, or on the rows beside it in near ties.",
        },
        "--graphs": {
            "names": ("--graphs/--no-graphs",),
            "default": True,
            "help": "Record what comes again with every token and replay it, or call each operator by itself.",
        },
        "--share-prefixes": {
            "names": ("--share-prefixes/--no-share-prefixes",),
            "default": None,
            "help": "Read and keep once what prompts begin with alike, or once for each of them.",
        },
        "--read-ahead-gib": {
            "type": AHEAD_GIB,
            "help": "Host memory for weights that are read from disk early; default: four stages, if there is room.",
        },
        "--prompt-len": {"type": TOKENS},
        "--gen-len": {"type": TOKENS},
        "--rows": {"type": ROWS},
        "--lengths": {
            "names": ("lengths_file",),
            "type": TEXT,
            "metavar": "FILE.jsonl",
            "shell_complete": files,
            "help": "Rows that differ in length, one a line or drawn, in place of --prompt-len, --gen-len and --rows.",
        },
        "--text": {"names": ("text_file",), "type": TEXT, "metavar": "FILE", "shell_complete": files},
        "--tokens": {
            "names": ("tokens_file",),
            "type": TEXT,
            "metavar": "FILE",
            "shell_complete": files,
            "help": "In place of a text its token ids: numbers between white space, a JSON list, or one on each line.",
        },
        "--window": {
            "type": click.IntRange(2, TOKENS.max),
            "help": "Tokens of a window; default: the model's positions.",
        },
        "--stride": {"type": TOKENS, "help": "From one window to the next; default: half a window."},
        "--bos": {
            "type": click.Choice(["first", "every"]),
            "default": "first",
            "show_default": True,
            "help": "The token that begins a text: before the first token of all, or before every window.",
        },
        "--plot": {"names": ("plot_file",), "type": TEXT, "metavar": "FILE", "shell_complete": files},
        "--trace": {"names": ("trace_file",), "type": TEXT, "metavar": "FILE", "shell_complete": files},
        "--output": {"names": ("-o", "output_file"), "type": TEXT, "metavar": "FILE", "shell_complete": files},
        "--force": {"is_flag": True, "help": "Replace an output that is there already."},
        "--json": {"names": ("as_json",), "is_flag": True, "help": "Print one JSON object."},
    }
)
"""What `click.option` is told of an option; `names`: what it is called beside its own name."""

BUDGETS = ("--device-mem-gib", "--host-mem-gib", "--disk-dir")
"""How much memory there is, and where what does not fit goes."""


def option(flag: str, **differs: Any) -> Callable[[Command], Command]:
    """The declared option `flag`, on a command; `differs` is what this command says otherwise, None: nothing."""
    settings = {**DECLARED[flag], **differs}
    settings = {name: value for name, value in settings.items() if value is not None or name not in differs}
    names = settings.pop("names", ())
    own = () if any(name.startswith(f"{flag}/") for name in names) else (flag,)
    return click.option(*names, *own, **settings)


def together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """What several options make of a command, in this order."""

    def decorated(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorated


def options(*flags: str) -> Callable[[Command], Command]:
    """The declared options `flags`, on a command, in this order."""
    return together(*map(option, flags))


def was_given(context: click.Context, name: str) -> bool:
    """Whether the parameter `name` stands on the command line, be it with its default."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def scoring_options(command: Command) -> Command:
    """Where things lie and on which port, on a command that scores and takes them as `engine_for` needs them."""
    return together(
        options("--backend", "--device-mem-gib", "--host-mem-gib"),
        option("--disk-dir", help="Where activations may spill; default: the temporary folder."),
        options("--policy", "--percent", "--rows-per-group", "--groups"),
        option("--quantize-cache", help="Keys and values pass through 4-bit groups, as in a cache."),
        options("--overlap", "--row-invariant", "--share-prefixes", "--read-ahead-gib"),
    )(command)


def asked_of(given: Mapping[str, Any]) -> "Asked":
    """The policy, the fields to keep and the budgets that options ask for, by their names."""
    from flexref.errors import PolicyError, WrongCall
    from flexref.policy import asked

    if given["policy"] is not None and given["percent"]:
        raise click.UsageError("--policy and --percent exclude each other")
    try:
        return asked(given)
    except PolicyError as error:
        if given["policy"]:  # what is wrong may stand in the file
            raise
        raise WrongCall(str(error)) from error


def engine_for(
    model: str, given: Mapping[str, Any], on_event: "OnEvent", share: int = 1, wall: "Wall | None" = None
) -> "Engine":
    """An engine for `model` as scoring options ask for it; of memory without a budget it gets one part in `share`.

    Without a `wall` the whole time of its first job begins now.
    """
    # Attention on the host is for decode, of which there is none.
    asked = asked_of({"attention_on": "device", **given})

    from flexref.engine.wall import Wall, WallPart
    from flexref.loading import advisor, open_engine

    wall = wall or Wall()
    with wall.part(WallPart.IMPORTS):
        port = computing_port(given["backend"])
    budgets = dict(asked.budgets)
    if share > 1:
        for tier in ("device", "host"):
            if budgets[f"{tier}_mem_gib"] is None:
                budgets[f"{tier}_mem_gib"] = port.free_bytes(tier) / share / GIB
    settling = advisor(asked.policy, keep=asked.keep)
    return open_engine(model, settling, backend=port, **budgets, on_event=on_event, wall=wall)


def check_windows(given: Mapping[str, Any]) -> None:
    """A usage error for a stride that would leave tokens between windows, whatever the model."""
    if given["window"] and given["stride"] and given["stride"] > given["window"]:
        raise click.UsageError("--stride must not be more than --window")


def check_lengths(context: click.Context) -> None:
    """A usage error if --lengths stands beside an option whose place it takes."""
    for name, flag in (("prompt_len", "--prompt-len"), ("gen_len", "--gen-len"), ("rows", "--rows")):
        if was_given(context, name):
            raise click.UsageError(f"{flag} and --lengths exclude each other")


def check_prompts(given: Mapping[str, Any]) -> None:
    """A usage error if there are no prompts, on the command line or in a file."""
    if not given["prompts"] and given["input_file"] is None:
        raise click.UsageError("give --prompt or --input")


def computing_port(name: str) -> "Backend":
    """The port `name`; `WrongCall` if it only counts, so that no command that computes can have it."""
    from flexref.backend.registry import create
    from flexref.errors import WrongCall

    port = create(name)
    if not port.caps.computes:
        port.close()
        raise WrongCall(f"backend {name} computes nothing: there is nothing to measure, score or check")
    return port


def prompts_of(
    texts: tuple[str, ...],
    input_file: str | None,
    vocabulary: int,
    on_settings: "Callable[[Settings], object] | None" = None,
) -> "list[Prompt]":
    """The prompts of the command line, then those of the file, which may have settings where they are told of."""
    from flexref.text.prompts import Prompt, read_prompts

    prompts = [Prompt(text=text) for text in texts]
    if input_file is not None:
        prompts += read_prompts(input_file, vocabulary, _tell_of_blank_lines, on_settings)
    return prompts


def _tell_of_blank_lines(count: int) -> None:
    LOG.warning("skipped %s", how_many(count, "blank line"))
