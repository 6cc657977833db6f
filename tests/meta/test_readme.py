"""Every README tells the truth: its commands parse, its Python is Python, its files, names, links and anchors exist."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import click
import pytest

from flexref.cli.main import COMMANDS, all_commands
from flexref.errors import FlexrefError

ROOT = Path(__file__).parents[2]
TOP = ROOT / "README.md"
READMES = [
    TOP,
    *sorted(path for top in ("backends", "flexref", "tests", "tools") for path in (ROOT / top).rglob("README.md")),
]

SHELL = {"", "sh", "bash", "shell", "console"}
PYTHON = {"python", "py"}
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OURS = re.compile(r"(flexref|backends|tests|tools|\.ci)/[\w./-]+|(pyproject\.toml|LICENSE|\.gitignore)")
DOTTED = re.compile(r"flexref(\.\w+)+")
SOURCE = re.compile(r"[\w./-]+\.(py|cu|cuh)|(?!/)[\w./-]*\w/")
"""A file of code, or a folder, named as it is seen from the folder that a README describes."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


class Shown(NamedTuple):
    """One piece of a README: the line that it starts on, and its text."""

    line: int
    text: str


def blocks(readme: str, languages: set[str]) -> Iterator[Shown]:
    """The code blocks in one of `languages`; "" stands for a block that names none."""
    for block in FENCE.finditer(readme):
        if block["language"].lower() in languages:
            yield Shown(readme.count("\n", 0, block.start("body")) + 1, dedent(block["body"]))


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
    return next(command for command in all_commands() if command.name == name).load()


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
        if value is None or parameter.value_is_missing(value):  # None: what click 8.3 no longer calls missing
            if parameter.required:
                return f"{parameter.get_error_hint(context)} is missing"
        elif not isinstance(parameter.type, click.Path | click.File):
            with suppress(FlexrefError):  # a file or a port that a reader has
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
    own = 3 if words[2:] and words[2] in getattr(COMMANDS[words[1]], "below", ()) else 2
    command = command_called(" ".join(words[1:own]))
    if is_synopsis or len(words) == own:  # a bare `flexref verify` in a sentence is its name, not a call
        return fault_in_synopsis(command, text)
    try:
        return fault_in_call(command, words[own:])
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


def name_faults(readme: str, folder: Path = ROOT) -> list[str]:
    """One line per path and dotted name of flexref, in backticks, that is not there.

    A path is one of this repository or, from `folder`, one of the README's own neighbours.
    """
    found = []
    for number, text in enumerate(prose(readme).split("\n"), start=1):
        for span in INLINE.findall(text):
            word = span.split()[0] if span.split() else ""
            if OURS.fullmatch(word):
                if not list(ROOT.glob(word.rstrip("/"))):
                    found.append(f"line {number}: {word}: no such file")
            elif SOURCE.fullmatch(word):
                if not list(folder.glob(word.rstrip("/"))) and not list(ROOT.glob(word.rstrip("/"))):
                    found.append(f"line {number}: {word}: no such file")
            elif DOTTED.fullmatch(word) and not (resolves(word) or word == "flexref.backends"):
                found.append(f"line {number}: {word}: no such name")
    return found


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; those that are alike are numbered."""
    found: list[str] = []
    for heading in HEADING.findall(prose(markdown)):
        found.append(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    numbered = {
        f"{anchor}-{found[:place].count(anchor)}" for place, anchor in enumerate(found) if anchor in found[:place]
    }
    return {*found, *numbered}


def link_faults(readme: Path) -> list[str]:
    """One line per link from a README to a file, or an anchor on a page, that is not there."""
    found = []
    for number, text in enumerate(prose(readme.read_text(encoding="utf-8")).split("\n"), start=1):
        for link in LINK.findall(text):
            if re.match(r"https?://", link):
                continue
            target, _, anchor = link.partition("#")
            page = readme.parent / target if target else readme
            if not page.exists():
                found.append(f"line {number}: {link}: no such file")
            elif anchor and anchor not in anchors(page.read_text(encoding="utf-8")):
                found.append(f"line {number}: {link}: no such anchor")
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


@pytest.fixture(params=READMES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def readme(request: pytest.FixtureRequest) -> Path:
    """Each README in turn."""
    path: Path = request.param
    return path


def test_every_command_in_a_readme_parses(readme: Path) -> None:
    assert command_faults(readme.read_text(encoding="utf-8")) == []


def test_every_file_and_every_name_in_a_readme_exists(readme: Path) -> None:
    assert name_faults(readme.read_text(encoding="utf-8"), readme.parent) == []


def test_the_python_in_a_readme_is_python_and_imports_what_is_there(readme: Path) -> None:
    assert python_faults(readme.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(body, id=f"{page.parent.relative_to(ROOT)}:{line}")
        for page in READMES
        for line, body in blocks(page.read_text(encoding="utf-8"), PYTHON)
        if "pytest" not in body  # tests/testing/test_recipe.py runs the one that is a test file
    ],
)
def test_the_python_in_a_readme_runs(block: str) -> None:
    for theirs in ("pandas", "pyarrow"):
        if f"import {theirs}" in block:
            pytest.importorskip(theirs, reason=f"an example for users of {theirs} needs it: pip install {theirs}")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_link_in_a_readme_leads_somewhere(readme: Path) -> None:
    assert link_faults(readme) == []


def test_the_top_readme_is_short_enough_to_be_read() -> None:
    assert TOP.stat().st_size <= 12 * 1024


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the table's commands by `make SOURCE [--size N] ...` and `take --from FILE`, to test the checks."""

    @click.command("make")
    @click.argument("source", type=click.Path(exists=True))
    @click.option("--size", type=click.IntRange(min=1))
    @click.option("--kind", type=click.Choice(["a", "b"]))
    @click.option("--pair", nargs=2, type=int)
    @click.option("--fast/--slow")
    def make(**_: object) -> None:
        raise AssertionError("a README's command is parsed, never run")

    @click.command("take")
    @click.option("--from", "source", required=True)
    @click.option("--fast/--slow")
    def take(**_: object) -> None:
        raise AssertionError("a README's command is parsed, never run")

    monkeypatch.setattr(f"{__name__}.COMMANDS", {"make": None, "take": None})
    monkeypatch.setattr(f"{__name__}.command_called", {"make": make, "take": take}.__getitem__)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("flexref mkae x", "no such command 'mkae'"),
        ("flexref make", None),
        ("flexref make --size 3", "'SOURCE' is missing"),
        ("flexref take --fast", "'--from' is missing"),
        ("flexref take --fast ...", None),
        ("flexref take --from x", None),
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
        ("`meta/` and `meta/test_readme.py` and `kernels/<operator>.cu` and `*.py` and `a/b`", 0),
        ("`mtea/`", 1),
        ("`meta/test_raedme.py`", 1),
        ("`flexref.errors.FlexrefError` and `flexref.cli.main.run`", 0),
        ("`flexref.errors.FlexerfError`", 1),
        ("`flexref.no_such_part`", 1),
        ("```python\nfrom flexref.errors import FlexrefError\nimport flexref.cli.main\n```", 0),
        ("```python\nfrom flexref.errors import FlexerfError\n```", 1),
        ("```python\nflexref.lode('x')\n```", 1),
        ("```python\nfor in\n```", 1),
        ("1. One:\n\n   ```python\n   for in\n   ```", 1),
        ("1. One:\n\n   ```python\n   import flexref.cli.main\n   ```", 0),
    ],
)
def test_the_checks_of_names_and_python_catch_what_is_wrong_and_only_that(readme: str, faults: int) -> None:
    assert len(name_faults(readme, ROOT / "tests") + python_faults(readme)) == faults


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("tools/demo", None),
        ("tools/dmeo", "no such file"),
        ("tools/dmeo#part", "no such file"),
        ("https://example.org/tools/dmeo", None),
        ("#part-2s-a_b", None),
        ("#part-2s-a_b-1", None),
        ("#part-2s-a_b-2", "no such anchor"),
        ("other.md#the-page", None),
        ("other.md#no-page", "no such anchor"),
    ],
)
def test_the_check_of_links_catches_what_is_wrong_and_only_that(link: str, why: str | None, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "demo").touch()
    (tmp_path / "other.md").write_text("# The page\n```sh\n# no page\n```\n", encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_text(f"## Part 2's `a_b`\n\n[it]({link})\n\n## Part 2's a_b\n", encoding="utf-8")
    assert link_faults(page) == ([] if why is None else [f"line 3: {link}: {why}"])


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("flexref batch merge a.jsonl b.jsonl -o c.jsonl", None),
        ("flexref batch merge a.jsonl --shard 0/2 -o c.jsonl", "No such option"),
        ("flexref batch merge", None),
        ("flexref batch merge [OUT]... --szie N", "no such option --szie"),
        ("flexref batch a.jsonl b.jsonl -o c.jsonl --model demo", "superfluous 'b.jsonl'"),
    ],
)
def test_the_check_of_commands_knows_those_below_others(call: str, why: str | None) -> None:
    found = fault(call)
    assert found is None if why is None else found is not None and why in found


def test_the_top_readme_shows_each_command() -> None:
    shown = {words[1] for _, text in commands(TOP.read_text(encoding="utf-8")) if len(words := text.split()) > 1}
    assert set(COMMANDS) <= shown
