"""The `flexref` command itself: starts at once, finds its commands, and turns every end of a run into its exit code."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexref
from flexref.cli.main import COMMANDS, Entry, LazyCommand, command_group, run
from flexref.errors import FlexrefError, PolicyError

HEAVY = {"numpy", "scipy", "h5py", "tokenizers", "safetensors", "rich", "flexref_numpy", "flexref_dry", "flexref_cupy"}


def group_that(action: object) -> click.Group:
    """A group whose one command, `act`, raises `action` if it is an exception and calls it otherwise."""

    @click.command("act")
    @click.option("--rows", type=int, default=1)
    def command(rows: int) -> None:
        if isinstance(action, BaseException):
            raise action
        assert callable(action)
        action(rows)

    module = ModuleType("planted_command")
    module.command = command  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    return command_group({"act": Entry(module.__name__, "Acts.")})


@pytest.fixture(autouse=True)
def no_planted_module() -> object:
    yield
    sys.modules.pop("planted_command", None)


def flexref_process(*arguments: str, code: str = "from flexref.cli.main import main; main()") -> str:
    """What `flexref ARGUMENTS` prints on stdout in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_job_that_fits_loads_nothing_that_plans_measures_simulates_or_draws(tmp_path: Path) -> None:
    code = f"""
import atexit, os, sys
os.environ["FLEXREF_CACHE_DIR"] = {str(tmp_path)!r}
atexit.register(lambda: print("loaded:", *sys.modules))
from flexref.cli.main import main
main()
"""
    asked = ("generate", "--model", "demo", "--prompt", "a", "--max-new-tokens", "1", "--json")
    loaded = flexref_process(*asked, code=code).partition("loaded:")[2].split()
    assert "flexref.engine.generation" in loaded
    parts = ["planner.choose", "profile.kept_machines", "profile.measure", "simulator"]
    unneeded = [*(f"flexref.{part}" for part in parts), "rich", "scipy"]
    assert [name for name in loaded if any(name == part or name.startswith(f"{part}.") for part in unneeded)] == []


@pytest.mark.parametrize(
    "asked",
    [
        ("generate", "--model", "demo", "--prompt", "a", "--max-new-tokens", "1", "--json"),
        ("bench", "--model", "tiny", "--rows", "1", "--json"),
    ],
)
def test_a_device_is_started_before_all_else_is_loaded(asked: tuple[str, ...]) -> None:
    code = """
import sys
from flexref.backend import registry
def ended(name):
    print(name, "flexref.loading" in sys.modules, "flexref_numpy.backend" in sys.modules)
    raise SystemExit(0)
registry.start_device = ended
from flexref.cli.main import main
main()
"""
    assert flexref_process(*asked, code=code) == "numpy False False\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help_and_version_load_no_command_and_no_heavy_library(arguments: list[str]) -> None:
    code = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sys.modules))
from flexref.cli.main import main
main()
"""
    loaded = flexref_process(*arguments, code=code).partition("loaded:")[2].split()
    assert "flexref.cli.main" in loaded
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
    assert not {entry.module for entry in COMMANDS.values()} & set(loaded)


def test_help_lists_every_command_with_its_whole_text_in_the_order_of_the_table() -> None:
    shown = " ".join(flexref_process("--help").split())  # a long text goes on in the next line
    places = [shown.index(f" {name} {entry.short_help}") for name, entry in COMMANDS.items()]
    assert places == sorted(places)


def test_version_is_the_packages() -> None:
    assert flexref_process("--version") == f"flexref {flexref.__version__}\n"


def test_python_dash_m_flexref_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "flexref", "-h"], capture_output=True, text=True, check=True)
    assert done.stdout == flexref_process("-h")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_loads_helps_and_is_named_as_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = COMMANDS[name]
    assert LazyCommand(name, entry).load().name == name
    assert run(command_group(COMMANDS), [name, "-h"]) == 0
    assert f"flexref {name}" in capsys.readouterr().out


def test_a_command_that_returns_is_exit_0_and_gets_its_options() -> None:
    seen: list[int] = []
    assert run(group_that(seen.append), ["act", "--rows", "3"]) == 0
    assert seen == [3]


@pytest.mark.parametrize("arguments", [["act", "--rows", "many"], ["act", "--row-count", "3"], ["atc"], []])
def test_a_usage_error_is_exit_2_and_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group_that(print), arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: flexref" in shown.err


@given(message=st.text(max_size=60))
def test_an_error_of_the_user_is_one_line_and_exit_1_whatever_names_it_holds(message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shown: list[str] = []
        patch.setattr(click, "echo", lambda text, err: shown.append(text))
        assert run(group_that(PolicyError(message)), ["act"]) == 1
    (line,) = shown
    assert line.startswith("flexref: ")
    assert line.isprintable()


def test_an_error_of_the_user_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group_that(FlexrefError("größe: 3 ≠ 4")), ["act"]) == 1
    assert capsys.readouterr() == ("", "flexref: größe: 3 ≠ 4\n")


def test_an_interrupt_is_one_line_and_exit_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group_that(KeyboardInterrupt()), ["act"]) == 130
    assert capsys.readouterr() == ("", "flexref: interrupted\n")


def test_memory_that_runs_out_is_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group_that(MemoryError()), ["act"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("said", ["can't start new thread", os.strerror(errno.EAGAIN)])  # Python's, and libraries'
def test_threads_that_are_refused_are_one_line_and_exit_1(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group_that(RuntimeError(said)), ["act"]) == 1
    assert capsys.readouterr() == ("", f"flexref: the system refuses threads or memory: {said}\n")


@pytest.mark.parametrize("bug", [ZeroDivisionError("division"), EOFError(), AssertionError("lengths")])
def test_a_bug_shows_its_traceback_asks_for_a_report_and_is_exit_70(
    bug: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group_that(bug), ["act"]) == 70
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert type(bug).__name__ in shown
    assert shown.splitlines()[-1].startswith("flexref: this is a bug")


LOUD = """
import sys
from types import ModuleType
import click
from flexref.cli.main import Entry, command_group, run
@click.command("act")
def command():
    for _ in range(100_000):
        print("x" * 60)
sys.modules["loud"] = ModuleType("loud")
sys.modules["loud"].command = command
sys.exit(run(command_group({"act": Entry("loud", "Acts.")}), ["act"]))
"""


def test_a_reader_that_leaves_ends_the_run_without_a_word() -> None:
    process = subprocess.Popen([sys.executable, "-c", LOUD], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("code", "named"), [(LOUD, ""), ("from flexref.cli.main import main; main()", "cannot write to standard output: ")]
)
def test_an_output_that_is_full_is_one_line_and_exit_1(code: str, named: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"flexref: {named}{os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize("arguments", [("inspect", "demo"), ("plan", "--model", "125m", "--machine", "l4", "-o", "x")])
def test_a_working_folder_that_is_gone_is_named_or_not_needed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    gone = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    code = f"{gone}; from flexref.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr == f"flexref: the working folder is gone: {os.strerror(errno.ENOENT)}\n"


def test_the_front_door_leads_to_the_parts_and_names_what_it_lacks() -> None:
    assert set(flexref.__all__) <= set(dir(flexref))
    assert flexref.FlexrefError is FlexrefError
    for name in flexref.__all__:
        assert getattr(flexref, name) is not None
    with pytest.raises(AttributeError, match="'flexref' has no attribute 'lode'"):
        _ = flexref.lode
