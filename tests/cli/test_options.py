"""An option that several commands have is one option: declared in one place, under one name in the code."""

import ast
import inspect
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from flexref.cli import options
from flexref.cli.main import COMMANDS, LazyCommand, command_group
from flexref.errors import PolicyError
from flexref.policy import Policy, asked

DECLARED = set(options.DECLARED)

APART = {"--quantize-cache", "--quantize-weights", "--price-per-hour"}
"""What a planner chooses among is another thing than a switch of a run, though it is called alike."""


def flags_by_command() -> dict[str, set[str]]:
    """The flags of every command."""
    group = command_group(COMMANDS)
    found = {}
    for name in COMMANDS:
        entry = group.commands[name]
        assert isinstance(entry, LazyCommand)
        found[name] = {param.opts[-1] for param in entry.load().params if isinstance(param, click.Option)}
    return found


def declared_by_itself(source: str) -> set[str]:
    """The flags that `source` declares with `click.option`, not by the table of shared ones."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {
        str(argument.value).partition("/")[0]
        for call in calls
        if ast.unparse(call.func) == "click.option"
        for argument in call.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("--")
    }


def test_what_several_commands_have_is_declared_once() -> None:
    owners = defaultdict(set)
    for command, flags in flags_by_command().items():
        for flag in flags:
            owners[flag].add(command)
    assert len(owners) > 40
    shared = {flag for flag, commands in owners.items() if len(commands) > 1}
    twice = defaultdict(list)
    for path in Path(inspect.getfile(options)).parent.glob("*.py"):
        for flag in declared_by_itself(path.read_text(encoding="utf-8")):
            twice[flag].append(path.name)
    wrong = {flag: files for flag, files in twice.items() if (flag in shared and len(files) > 1) or flag in DECLARED}
    assert set(wrong) <= APART
    assert shared >= DECLARED


def test_the_reader_of_declarations_sees_them() -> None:
    source = '@click.option("-o", "--output", "out")\n@click.option("--a/--no-a")\n@option("--b")\ndef f(): ...'
    assert declared_by_itself(source) == {"--output", "--a"}


def test_no_command_imports_another() -> None:
    modules = {entry.module for entry in COMMANDS.values()}
    for module in modules:
        tree = ast.parse(Path(str(import_module(module).__file__)).read_text(encoding="utf-8"))
        seen = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not seen & modules, module


def test_a_command_may_say_something_else_of_a_shared_option() -> None:
    @click.command
    @options.option("--backend", default=None, show_default=None, help="Another one.")
    @options.options("--rows-per-group", "--overlap")
    def command(**given: Any) -> dict[str, Any]:
        return given

    shown = command.get_help(click.Context(command))
    assert "Another one." in shown
    assert "default" not in shown
    nothing = {"backend": None, "rows_per_group": None, "overlap": None}
    assert command.main([], standalone_mode=False) == nothing
    assert command.main(["--no-overlap"], standalone_mode=False) == {**nothing, "overlap": False}


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, {}),
        ({"groups": 3, "rows_per_group": None, "quantize_cache": False}, {"groups_per_block": 3}),
        ({"row_invariant": False}, {"row_invariant": False}),
        ({"overlap": False, "quantize_cache": True}, {"overlap": False, "cache_scheme": "int4"}),
    ],
)
def test_without_a_policy_what_is_asked_for_is_kept(options: dict[str, object], keep: dict[str, object]) -> None:
    assert asked(options) == (None, keep, {"device_mem_gib": None, "host_mem_gib": None, "disk_dir": None})


def test_a_policy_is_changed_by_what_is_asked_for_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(Policy(rows_per_group=5).to_json(), encoding="utf-8")
    given = {"policy": str(path), "groups": 2, "device_mem_gib": 1.5}
    policy, keep, budgets = asked(given)
    assert policy == Policy(rows_per_group=5, groups_per_block=2)
    assert keep == {}
    assert budgets["device_mem_gib"] == 1.5
    shares = asked({"percent": (50, 50, 0, 100, 100, 0), "attention_on": "host"}).policy
    assert shares == Policy.from_percent((50, 50, 0, 100, 100, 0), attention_on="host")


def test_what_no_policy_allows_is_told_before_a_file_is_read() -> None:
    with pytest.raises(PolicyError, match="rows_per_group must be a positive integer, found 0"):
        asked({"policy": "not there.json", "rows_per_group": 0})
