"""Cases of command lines, drawn from what each command declares, with values right, odd or impossible."""

from pathlib import Path
from random import Random
from typing import Any

import click

from flexref.cli.main import COMMANDS, LazyCommand
from hostile_run.mutations import ODD_TEXTS
from hostile_run.shelf import WEIGHT_FILES, Shelf
from hostile_run.trial import Trial

LARGE = (str((1 << 31) - 1), str(10**20), "9" * 5000, "0x10", "1e3", "1_0", "-1", "-0", "", "nan", "inf", "٣", "1.5")
STRAY = ("--", "-", "--help", "-h", "-x", "--model", "@file", "a\x1b[2Jb")
SMALL = ("0", "1", "2", "3", "5")

LONG_WORK = frozenset({"profile", "lm-eval", "compare-machines", "bench"})
"""Commands that measure or plan for long when all is right: their calls always have something wrong."""

WORK = frozenset({"prompts", "input_file", "text_file", "tokens_file"})
"""Options without which most calls have nothing to do."""

OUTPUTS = frozenset({"new.json", "new.h5", "new.png", "new.npz", "old.json"})
"""Names in the working folder that outputs may be given; `old.json` is there before."""


def trial(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A random call of a random command."""
    name = draw.choice(sorted(COMMANDS))
    command = LazyCommand(name, COMMANDS[name]).load()
    # One in two calls is nearly right, so that more than what is wrong first is met.
    odd = draw.choice((0.01, 0.15))
    parts = [_parameter(draw, shelf, parameter, odd) for parameter in command.params]
    draw.shuffle(parts)
    line = [name, *(argument for part in parts for argument in part)]
    line = [argument for argument in line if argument != "--full"]  # minutes of measuring
    if name in LONG_WORK:
        line += draw.choice((["--backend", "nothing"], ["--nothing"], ["--machine", "nothing"], ["--rows", "-1"]))
    if draw.random() < 0.1:
        line.insert(draw.randrange(len(line) + 1), draw.choice(STRAY))
    if draw.random() < 0.02:
        line = draw.choice(([], ["--version"], ["nothing"], ["--help"], ["-"], ["\udcff"], [*line, *line]))
    line = [_argument(text) for text in line]
    # An output may have been given any of the texts; what it is then is judged all the same.
    return Trial([line], folder, outputs=OUTPUTS | {*line, *(text.partition("=")[2] for text in line)})


def _argument(text: str) -> str:
    """What can be handed to a process: no NUL; a byte that is no text only where the text holds one (`\\udcff`)."""
    kept = "".join(letter for letter in text if letter != "\0" and not "\ud800" <= letter < "\udc80")
    return kept.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _parameter(draw: Random, shelf: Shelf, parameter: click.Parameter, odd: float) -> list[str]:
    """One option or argument, as it stands on the line; nothing if it is left out."""
    needed = parameter.required or isinstance(parameter, click.Argument)
    often = odd / 3 if needed else 0.4 if parameter.name in WORK else 0.8
    if draw.random() < often:
        return []
    count = 1 if parameter.nargs == -1 else parameter.nargs
    values = [_value(draw, shelf, parameter, odd) for _ in range(count)]
    if isinstance(parameter, click.Argument):
        return values
    flag = draw.choice([*parameter.opts, *parameter.secondary_opts])
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return [flag]
    if draw.random() < odd / 2:
        values = values[1:]
    return [f"{flag}={values[0]}"] if len(values) == 1 and draw.random() < 0.1 else [flag, *values]


def _value(draw: Random, shelf: Shelf, parameter: click.Parameter, odd: float) -> str:
    kind: Any = parameter.type
    name = parameter.name or ""
    if draw.random() < odd:
        return draw.choice((*ODD_TEXTS, *LARGE))
    if isinstance(kind, click.Choice):
        return str(draw.choice(list(kind.choices)))
    if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        return draw.choice(SMALL[1:]) if draw.random() > odd else draw.choice(("0", *LARGE))
    texts = _texts(shelf, name)
    return draw.choice(texts[:1] if draw.random() > 4 * odd else texts)


def _texts(shelf: Shelf, name: str) -> tuple[str, ...]:
    """What a text parameter of this name may be."""
    models = (shelf.path("words.h5"), *(shelf.path(file) for file in WEIGHT_FILES))
    outputs = ("new.json", "old.json", "nowhere/new.json", "/dev/null", ".", "/dev/full", "new.h5", "new.png")
    files = tuple(shelf.path(file) for file in ("prompts.txt", "ids.jsonl", "policy.json", "machine.json", "text.txt"))
    if name in {"model", "a", "b", "source", "file", "path", "models"}:
        return (*models, *models, "nowhere.h5", shelf.path("single"), shelf.path("policy.json"), "/dev/zero")
    if name in {"out", "output_file", "trace_file", "plot_file", "pareto_file"}:
        return outputs
    if name == "backend":
        return ("numpy", "numpy", "dry", "cupy", "nothing", "")
    if name in {"machine", "machines"}:
        return (shelf.path("machine.json"), shelf.path("machine.json"), "t4-gcp", "nothing", shelf.path("policy.json"))
    wanted = {
        "input_file": ("ids.jsonl", "prompts.txt", "prompts.jsonl"),
        "policy": ("policy.json",),
        "text_file": ("text.txt",),
        "tokens_file": ("tokens.txt", "tokens.json"),
        "choices_file": ("letters.jsonl", "endings.jsonl", "words.jsonl"),
        "calibrate": ("long.txt", "text.txt"),
        "reference": ("reference.npz",),
        "theirs": ("theirs.npz", "reference.npz"),
    }.get(name)
    if wanted:
        right = tuple(shelf.path(file) for file in wanted)
        return (*right, *right, *right, *files, "nowhere", ".", "/dev/zero", "/dev/null", "-")
    if name == "disk_dir":
        return ("../tmp", "../tmp", "nowhere/at/all", "/dev/null", "/proc", "")
    return ("x", "One day", "1", *ODD_TEXTS, *files)
