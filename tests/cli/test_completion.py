"""Tab completion as shells ask for it: the scripts, commands, options, and the values that an option may have."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flexref.architecture.published import SIZES
from flexref.backend.registry import installed
from flexref.cli.main import COMMANDS, LazyCommand
from flexref.machine.names import CACHE_VARIABLE, known_machines

PROGRAM = [sys.executable, "-m", "flexref"]

PATHS = ("FILE", "DIR", ".png", ".h5", "SOURCE")
"""What a metavar says that stands for a file or a folder."""


def asked(question: str, words: str = "") -> subprocess.CompletedProcess[str]:
    """A shell's question; `words` is the line up to the cursor."""
    place = str(len(f"{words}.".split()) - 1)
    asking = {**os.environ, "_FLEXREF_COMPLETE": question, "COMP_WORDS": words, "COMP_CWORD": place}
    return subprocess.run(PROGRAM, env=asking, capture_output=True, text=True, check=False)


def offered(words: str) -> list[str]:
    """What bash is offered: `plain,NAME`, `file,START` or `dir,START`."""
    done = asked("bash_complete", words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def plain(names: object) -> list[str]:
    return [f"plain,{name}" for name in names]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    done = asked(f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_FLEXREF_COMPLETE={shell}_complete" in done.stdout
    assert "Usage" not in done.stdout


def test_commands_and_options_are_offered() -> None:
    assert offered("flexref ") == plain(COMMANDS)
    assert offered("flexref gen") == ["plain,generate"]
    assert offered("flexref generate --max") == ["plain,--max-new-tokens"]
    assert offered("flexref convert --quantize int8") == ["plain,int8"]


def test_names_are_offered_where_an_option_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines" / "mine.json").touch()
    assert offered("flexref generate --backend ") == plain(installed())
    assert offered("flexref generate --machine ") == ["file,", *plain((*known_machines(), "mine"))]
    assert offered("flexref plan --model opt-6") == ["file,opt-6", "plain,opt-6.7b", "plain,opt-66b"]
    assert offered("flexref bench --model ") == ["file,", *plain(SIZES)]
    assert offered("flexref generate --model ") == ["file,", "plain,demo"]
    assert offered("flexref inspect d") == ["file,d", "plain,demo"]
    assert "plain,tiny" in offered("flexref bench --suite ")
    assert offered("flexref compare-machines --price-per-hour t4") == ["plain,t4-gcp="]
    assert offered("flexref generate --disk-dir /v") == ["dir,/v"]


def test_other_shells_are_offered_the_same() -> None:
    assert asked("zsh_complete", "flexref generate --backend nump").stdout.split() == ["plain", "numpy", "_"]
    fish = {"_FLEXREF_COMPLETE": "fish_complete", "COMP_WORDS": "flexref generate --backend nump", "COMP_CWORD": "nump"}
    done = subprocess.run(PROGRAM, env={**os.environ, **fish}, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,numpy\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_help_calls_a_file_or_a_folder_is_completed_as_one(name: str) -> None:
    command = LazyCommand(name, COMMANDS[name]).load()
    with click.Context(command) as context:
        for parameter in command.params:
            if any(word in (parameter.metavar or "") for word in PATHS):
                kinds = {item.type for item in parameter.shell_complete(context, "x")}
                assert kinds & {"file", "dir"}, parameter.name


def test_bash_completes_with_its_script(tmp_path: Path) -> None:
    program = tmp_path / "flexref"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flexref "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
source <(_FLEXREF_COMPLETE=bash_source flexref)
COMP_WORDS=(flexref generate --backend nump) COMP_CWORD=3
_flexref_completion flexref
echo "${COMPREPLY[@]}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("numpy\n", "")


def test_completing_loads_no_heavy_library() -> None:
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from flexref.cli.main import main; main()"
    asking = {"_FLEXREF_COMPLETE": "bash_complete", "COMP_WORDS": "flexref generate --", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asking}, capture_output=True, text=True, check=True
    )
    assert "plain,--model" in done.stdout
    assert not {"numpy", "scipy", "h5py", "rich"} & set(done.stdout.splitlines()[-1].split())


def test_another_question_is_a_wrong_call() -> None:
    done = asked("tcsh_source")
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be one of bash_source, zsh_source, fish_source, found 'tcsh_source'" in done.stderr
