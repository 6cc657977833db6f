"""README.md tells the truth: its commands parse, its Python is Python, and every file and name in it exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from flexref.cli.main import COMMANDS, LazyCommand

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHELL = {"", "sh", "bash", "shell", "console"}
PYTHON = {"python", "py"}
FENCE = re.compile(
    r"^(?P<fence>```+|~~~+) *(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OURS = re.compile(r"(flexref|backends|tests|tools|\.ci)/[\w./-]+|(pyproject\.toml|LICENSE|\.gitignore)")
DOTTED = re.compile(r"flexref(\.\w+)+")


class Shown(NamedTuple):
    """One piece of a README: the line that it starts on, and its text."""

    line: int
    text: str


def blocks(readme: str, languages: set[str]) -> Iterator[Shown]:
    """The code blocks in one of `languages`; "" stands for a block that names none."""
    for block in FENCE.finditer(readme):
        if block["language"].lower() in languages:
            yield Shown(readme.count("\n", 0, block.start("body")) + 1, block["body"])


def prose(readme: str) -> str:
    """`readme` with its code blocks emptied, line by line."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), readme)


def commands(readme: str) -> Iterator[Shown]:
    """Every `flexref ...` call in the shell blocks and between backticks, without prompt, continuations, pipes."""
    for start, body in blocks(readme, SHELL):
        joined = re.sub(r"\\\n\s*", lambda split: " " + "\0" * split[0].count("\n"), body)
        line = start
        for text in joined.split("\n"):
            for part in re.split(r"[|&;]+(?![^\[]*\])", text.replace("\0", "")):
                if call := re.match(r"\s*(?:[$>] +)?(?:\w+=\S* +)*(?:time +)?(flexref(?: .*)?)$", part):
                    yield Shown(line, call[1].strip())
            line += 1 + text.count("\0")
    for number, text in enumerate(prose(readme).split("\n"), start=1):
        yield from (Shown(number, span) for span in INLINE.findall(text) if span.startswith("flexref "))


def command_called(name: str) -> click.Command:
    return LazyCommand(name, COMMANDS[name]).load()


def fault_in_synopsis(command: click.Command, text: str) -> str | None:
    """What is wrong with `flexref NAME ... [--option VALUE]`, which nobody could type: an option that is not there."""
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [
        option for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", text) if option not in known | {"-h", "--help"}
    ]
    return f"no such option {unknown[0]}" if unknown else None


def fault_in_call(command: click.Command, arguments: list[str]) -> str | None:
    """What is wrong with the arguments of a call that a reader may copy; whether its files exist is not asked."""
    # As the group calls it: click keeps the help option that it makes first, for every later call in this process.
    settings = {**command.context_settings, "help_option_names": ["-h", "--help"]}
    context = click.Context(command, info_name=command.name, **settings)
    values, left, _ = command.make_parser(context).parse_args(args=list(arguments))
    if left:
        return f"superfluous {left[0]!r}"
    for parameter in command.params:
        value = values.get(str(parameter.name))
        if parameter.value_is_missing(value):
            if parameter.required:
                return f"{parameter.get_error_hint(context)} is missing"
        elif not isinstance(parameter.type, click.Path | click.File):
            parameter.type_cast_value(context, value)
    return None


def fault(text: str) -> str | None:
    """What is wrong with the call `text` of flexref, or None."""
    is_synopsis = "[" in text or "..." in text
    words = text.split() if is_synopsis else shlex.split(text, comments=True)
    words = words[: next((place for place, word in enumerate(words) if word.startswith((">", "2>", "<"))), None)]
    if len(words) == 1 or words[1] in ("-h", "--help", "--version", "COMMAND"):
        return None
    if words[1] not in COMMANDS:
        return f"no such command {words[1]!r}"
    command = command_called(words[1])
    if is_synopsis or len(words) == 2:  # a bare `flexref verify` in a sentence is its name, not a call
        return fault_in_synopsis(command, text)
    try:
        return fault_in_call(command, words[2:])
    except click.UsageError as error:
        return error.format_message()


def command_faults(readme: str) -> list[str]:
    """One line per wrong call of flexref in `readme`."""
    return [f"line {line}: {text}: {why}" for line, text in commands(readme) if (why := fault(text))]


def resolves(dotted: str) -> bool:
    """Whether a dotted name leads to something: a module, or what can be reached from one."""
    module, *names = dotted.split(".")
    found: object = import_module(module)
    for name in names:
        if not hasattr(found, name):
            try:
                import_module(f"{module}.{name}")
            except ModuleNotFoundError:
                return False
        found, module = getattr(found, name), f"{module}.{name}"
    return True


def name_faults(readme: str) -> list[str]:
    """One line per path of this repository and dotted name of flexref, in backticks or a link, that is not there."""
    found = []
    for number, text in enumerate(prose(readme).split("\n"), start=1):
        spans = [*INLINE.findall(text), *(target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text))]
        for span in spans:
            word = span.split()[0] if span.split() else ""
            if OURS.fullmatch(word) and not list(ROOT.glob(word.rstrip("/"))):
                found.append(f"line {number}: {word}: no such file")
            elif DOTTED.fullmatch(word) and not (resolves(word) or word == "flexref.backends"):
                found.append(f"line {number}: {word}: no such name")
    return found


def python_faults(readme: str) -> list[str]:
    """One line per Python block that is none, and per name that one imports from flexref in vain."""
    found = []
    for line, body in blocks(readme, PYTHON):
        try:
            tree = ast.parse(body)
        except SyntaxError as error:
            found.append(f"line {line}: {error.msg}")
            continue
        for node in ast.walk(tree):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "flexref":
                wanted = [ast.unparse(node)]
            ours = [name for name in wanted if name.partition(".")[0] == "flexref"]
            found += [f"line {line}: {name}: no such name" for name in ours if not resolves(name)]
    return found


def test_every_command_in_the_readme_parses() -> None:
    assert command_faults(README) == []


def test_every_file_and_every_name_in_the_readme_exists() -> None:
    assert name_faults(README) == []


def test_the_python_in_the_readme_is_python_and_imports_what_is_there() -> None:
    assert python_faults(README) == []


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the table's commands by one, `make SOURCE [--size N] ...`, to test the checks themselves."""

    @click.command("make")
    @click.argument("source", type=click.Path(exists=True))
    @click.option("--size", type=click.IntRange(min=1))
    @click.option("--kind", type=click.Choice(["a", "b"]))
    @click.option("--pair", nargs=2, type=int)
    @click.option("--fast/--slow")
    def make(**_: object) -> None:
        raise AssertionError("a README's command is parsed, never run")

    monkeypatch.setattr(f"{__name__}.COMMANDS", {"make": None})
    monkeypatch.setattr(f"{__name__}.command_called", {"make": make}.__getitem__)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("flexref mkae x", "no such command 'mkae'"),
        ("flexref make", None),
        ("flexref make --size 3", "'SOURCE' is missing"),
        ("flexref make x --szie 3", "No such option"),
        ("flexref make x --size", "requires an argument"),
        ("flexref make x --size 0", "not in the range"),
        ("flexref make x --kind c", "'c' is not one of"),
        ("flexref make x --pair 1 b", "not a valid integer"),
        ("flexref make x y", "superfluous 'y'"),
        ("$ OMP_NUM_THREADS=2 flexref make x --size 3 --kind b --pair 1 2 --slow > out.txt  # as text", None),
        ("flexref make 'a file' \\\n    --size 3 \\\n    --fast | head", None),
        ("flexref make x \\\n    --size 3 \\\n    --fats | head", "No such option"),
        ("cd here && flexref make x --size 0", "not in the range"),
        ("flexref make SOURCE [--size N] [--kind a|b]", None),
        ("flexref make SOURCE [--size N] [--knid a|b]", "no such option --knid"),
        ("flexref --help", None),
        ("pip install flexref", None),
    ],
)
def test_the_check_of_commands_catches_what_is_wrong_and_only_that(call: str, why: str | None) -> None:
    found = command_faults(f"Text\n\n```sh\ntrue\n{call}\ntrue\n```\n")
    assert len(found) == (why is not None)
    assert all(line.startswith("line 5: ") and str(why) in line for line in found)


@pytest.mark.usefixtures("planted")
def test_the_check_of_commands_reads_prose_and_every_block_but_not_other_languages() -> None:
    readme = "`flexref no1 x`\n```\nflexref no2 x\n```\n```text\nflexref no3 x\n```\n~~~console\n$ flexref no4 x\n~~~\n"
    assert [line.split(":")[0] for line in command_faults(readme)] == ["line 3", "line 9", "line 1"]


@pytest.mark.parametrize(
    ("readme", "faults"),
    [
        ("`tools/demo` and `flexref/cli/main.py` and `flexref/*.py` and `backends/`", 0),
        ("`tools/dmeo`", 1),
        ("[it](tools/dmeo#part)", 1),
        ("[it](https://example.org/tools/dmeo)", 0),
        ("`flexref.errors.FlexrefError` and `flexref.cli.main.run`", 0),
        ("`flexref.errors.FlexerfError`", 1),
        ("`flexref.no_such_part`", 1),
        ("```python\nfrom flexref.errors import FlexrefError\nimport flexref.cli.main\n```", 0),
        ("```python\nfrom flexref.errors import FlexerfError\n```", 1),
        ("```python\nflexref.lode('x')\n```", 1),
        ("```python\nfor in\n```", 1),
    ],
)
def test_the_checks_of_names_and_python_catch_what_is_wrong_and_only_that(readme: str, faults: int) -> None:
    assert len(name_faults(readme) + python_faults(readme)) == faults


def test_a_readme_that_shows_commands_shows_each_of_them() -> None:
    shown = {words[1] for _, text in commands(README) if len(words := text.split()) > 1}
    assert not shown or set(COMMANDS) <= shown
