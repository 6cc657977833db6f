"""flexref/cli/README.md shows every command's help as it is: it is what tools/command_reference prints."""

import runpy
from pathlib import Path

from flexref.cli.main import all_commands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "flexref" / "cli" / "README.md").read_text(encoding="utf-8")


def test_the_reference_of_commands_is_what_its_tool_prints() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "command_reference"))
    assert "".join(tool["reference"]()) == PAGE, "run: tools/command_reference > flexref/cli/README.md"


def test_the_reference_has_every_command() -> None:
    assert [line.removeprefix("## flexref ") for line in PAGE.split("\n") if line.startswith("## ")] == [
        command.name for command in all_commands()
    ]
