"""No output of a command takes the place of what it reads, of another output, or of a file without being asked to."""

import os
import shutil
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show.outputs import check_replaced
from flexref.errors import StorageError
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file

GENERATE = ("generate", "--prompt", "x", "--max-new-tokens", "1", "--percent", *("100", "0") * 3)
PLAN = ("plan", "--machine", "t4-gcp", "--prompt-len", "8", "--gen-len", "2", "--rows", "1")
TEXT = ("compare-models", "demo", "--text", "text.png", "--percent", *("100", "0") * 3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a text, links to them, and a model's folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(resolve("demo"), "m.h5")
    Path("text.png").write_text("One day a little girl went out.\n" * 20)
    Path("prompts").write_text("One day\n")
    os.symlink("m.h5", "link.h5")
    os.link("m.h5", "hard.h5")
    os.symlink("prompts", "link")
    os.mkdir("folder")
    Path("folder/weights").write_text("{}")
    return tmp_path


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((*GENERATE, "--model", "m.h5", "--trace", "m.h5"), "m.h5"),
        ((*GENERATE, "--model", "link.h5", "--trace", "hard.h5"), "hard.h5"),
        ((*GENERATE, "--model", "demo", "--input", "prompts", "--trace", "link"), "link"),
        ((*GENERATE, "--model", "demo", "--trace", resolve("demo")), resolve("demo")),
        (("generate", "--model", "demo", "--prompt", "x", "--policy", "prompts", "--trace", "./prompts"), "./prompts"),
        (("generate", "--model", "demo", "--prompt", "x", "--machine", "prompts", "--trace", "link"), "link"),
        ((*PLAN, "--model", "m.h5", "-o", "link.h5"), "link.h5"),
        ((*PLAN, "--model", "m.h5", "--trace", "hard.h5"), "hard.h5"),
        (("compare-machines", "--model", "text.png", "--plot", "text.png"), "text.png"),
        ((*TEXT, "m.h5", "--plot", "text.png"), "text.png"),
        (("bench", "--model", "m.h5", "--trace", "hard.h5"), "hard.h5"),
        (("convert", "m.h5", "m.h5"), "m.h5"),
        (("convert", "m.h5", "hard.h5"), "hard.h5"),
        (("convert", "demo", "prompts", "--calibrate", "link"), "prompts"),
        (("convert", "folder", "folder/weights"), "folder/weights"),
    ],
)
def test_an_output_is_none_of_the_inputs_whatever_its_name(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], path: str
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    before = contents(here)
    assert flexref(*arguments, "--force") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"flexref: cannot write {path}: this command reads it, as ")
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert contents(here) == before


def test_the_built_in_model_is_kept_whatever_is_called_like_it(here: Path) -> None:
    for name in ("file", "folder"):
        (here / "demo").write_text("x") if name == "file" else (here / "demo").mkdir()
        with pytest.raises(StorageError, match="this command reads it"):
            check_replaced({"--trace": resolve("demo")}, ["demo"], force=True)
        (here / "demo").unlink() if name == "file" else (here / "demo").rmdir()


@pytest.mark.parametrize(
    "arguments",
    [
        (*GENERATE, "--model", "demo", "--trace"),
        (*PLAN, "--model", "125m", "-o"),
        (*PLAN, "--model", "125m", "--trace"),
        (*PLAN, "--model", "125m", "--pareto"),
        ("profile", "-o"),
        ("compare-machines", "--model", "125m", "--plot"),
        (*TEXT, "m.h5", "--plot"),
        ("bench", "--model", "tiny", "--trace"),
        ("convert", "demo"),
    ],
)
def test_a_file_that_is_there_is_replaced_only_with_force(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    if {"--plot", "--pareto"} & set(arguments):
        pytest.importorskip("matplotlib")
    (here / "mine.png").write_text("mine")
    before = contents(here)
    assert flexref(*arguments, "mine.png") == 1
    shown = capsys.readouterr()
    assert shown.err == "flexref: cannot write mine.png: it is there already; --force replaces it\n"
    assert contents(here) == before


def test_with_force_it_is_replaced_and_nothing_else_is_left(here: Path) -> None:
    before = set(contents(here))
    assert flexref("convert", "demo", "m.h5", "--force", "--quantize", "int8") == 0
    assert open_weight_file("m.h5").scheme == "int8"
    assert flexref(*GENERATE, "--model", "m.h5", "--trace", "prompts", "--force") == 0
    assert "process_name" in (here / "prompts").read_text()
    assert set(contents(here)) == before


def test_two_outputs_are_two_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("new.json", "other.json")
    assert flexref(*PLAN, "--model", "125m", "-o", "new.json", "--trace", "other.json", "--force") == 1
    said = "flexref: cannot write new.json: it is asked for twice, as --trace and as -o\n"
    assert capsys.readouterr().err == said
    assert flexref(*PLAN, "--model", "125m", "-o", "/dev/null", "--trace", "/dev/null") == 0


def test_a_suites_later_traces_are_checked_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flexref.bench.suites import read_suites

    suite = next(suite.name for suite in read_suites().values() if len(suite.runs) > 1)
    (here / "trace.2").write_text("mine")
    assert flexref("bench", "--suite", suite, "--trace", "trace") == 1
    assert "cannot write trace.2: it is there already" in capsys.readouterr().err
