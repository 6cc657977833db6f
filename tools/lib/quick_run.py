"""A pytest plugin that keeps how long every test takes and, on `--quick`, runs what matters most within some seconds.

It knows no test by name. First come the tests of the parts that differ from the main branch, then all others, within
both the fastest first: nearly all tests are fast, and few slow ones take most of the time of a whole run.
"""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

USUAL_SECONDS = 0.2
"""Of a test that was never timed here: the mean over the suite."""

USED = 0.75
"""Of the workers' time: the rest goes into collecting, and into fixtures that each worker makes for itself."""

SLOW_TO_COLLECT = ("tests/oracle",)
"""Their imports alone take seconds in every worker."""

KEPT = "flexref/seconds"
"""In pytest's cache: the last seconds of every test's call, by node, and of the longest setup in every file."""


def tests_of(root: Path, path: str) -> tuple[str, ...]:
    """Beginnings of the nodes that test the changed file `path`, relative to the repository at `root`.

    Tests mirror the folders by name; of a part without a folder of tests, they are the files that import it.
    """
    top, _, rest = path.partition("/")
    part = rest.partition("/")[0]
    if top == "tests":
        # What is no test, such as a conftest, serves its whole folder.
        return (path,) if Path(path).name.startswith("test_") else (f"{Path(path).parent.as_posix()}/",)
    if top == "flexref":
        if part.endswith(".py"):
            return (f"tests/test_{part}",)
        if (root / "tests" / part).is_dir():
            return (f"tests/{part}/",)
        files = sorted((root / "tests").rglob("test_*.py"))
        return tuple(
            file.relative_to(root).as_posix() for file in files if f"flexref.{part}" in file.read_text(encoding="utf-8")
        )
    if top == "backends":
        kernels = ("tests/kernels/",) if part == "flexref_cupy" else ("tests/conformance/",)
        return ("tests/backends/", *kernels)
    return ("tests/tools/",) if top == "tools" else ("tests/meta/",)


def chosen(nodes: Sequence[str], first: tuple[str, ...], kept: Mapping[str, float], budget_s: float) -> set[str]:
    """The nodes to run: those that begin with one of `first` come first, fast ones before slow ones, while they fit.

    Of tests that were never timed each file's first ones are taken, so that a little of everything is run.
    """
    places: Counter[str] = Counter()
    order = []
    for node in nodes:
        file = node.partition("::")[0]
        order.append((not node.startswith(first), kept.get(node, USUAL_SECONDS), places[file], node, file))
        places[file] += 1
    taken: set[str] = set()
    files: set[str] = set()
    for _, seconds, _, node, file in sorted(order):
        cost = seconds + (0.0 if file in files else kept.get(file, 0.0))
        if cost <= budget_s:
            budget_s -= cost
            taken.add(node)
            files.add(file)
    return taken


def git(folder: Path, *arguments: str) -> list[str]:
    """The lines that git answers; none where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.splitlines()


def changed(folder: Path) -> list[str]:
    """Files that differ from where this branch left the main branch, those that are in no commit included."""
    bases = git(folder, "merge-base", "HEAD", "origin/main") or git(folder, "merge-base", "HEAD", "main") or ["HEAD"]
    new = git(folder, "ls-files", "--others", "--exclude-standard")
    return sorted({*git(folder, "diff", "--name-only", bases[0]), *new})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", type=float, metavar="SECONDS", help="run what matters most, for some SECONDS")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config))
    if config.getoption("--quick") is not None:
        config.pluginmanager.register(Quick(config))


class Record:
    """Keeps the seconds of all tests, where all reports arrive."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.calls: dict[str, float] = {}
        self.setups: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        if report.when == "setup":
            self.setups[file] = max(self.setups.get(file, 0.0), report.duration)
        elif report.when == "call":
            self.calls[report.nodeid] = report.duration

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self.config, "cache", None)
        if cache is not None and self.calls:
            cache.set(KEPT, {**cache.get(KEPT, {}), **self.calls, **self.setups})


class Quick:
    """Chooses tests, starts none after the time is up, and says what was left out."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.root = config, config.rootpath
        self.seconds: float = config.getoption("--quick")
        self.until = time.monotonic() + self.seconds
        self.first = tuple({begin for path in changed(self.root) for begin in tests_of(self.root, path)})
        self.left_out: Counter[str] = Counter()
        self.late: list[str] = []

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        name = collection_path.relative_to(self.root).as_posix() if collection_path.is_relative_to(self.root) else ""
        if name in SLOW_TO_COLLECT and not any(begin.startswith(name) for begin in self.first):
            self.left_out[f"{name}, whole"] += 1
            return True
        return None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        workers = self.config.workerinput["workercount"] if hasattr(self.config, "workerinput") else 1
        cache = getattr(self.config, "cache", None)
        kept = cache.get(KEPT, {}) if cache is not None else {}
        take = chosen([item.nodeid for item in items], self.first, kept, USED * self.seconds * workers)
        left = [item for item in items if item.nodeid not in take]
        self.left_out.update(item.nodeid.partition("::")[0] for item in left)
        self.config.hook.pytest_deselected(items=left)
        items[:] = sorted(
            (item for item in items if item.nodeid in take), key=lambda item: not item.nodeid.startswith(self.first)
        )

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if time.monotonic() < self.until:
            return None
        self.late.append(item.nodeid)
        return True

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workerinput"):
            self.config.workeroutput["left_out"] = json.dumps([self.left_out, self.late])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {}).get("left_out")
        if told is not None:
            left_out, late = json.loads(told)
            self.left_out = Counter(left_out)  # every worker chose the same
            self.late += late

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("quick: this is not the whole suite", yellow=True, bold=True)
        for line in told_left_out(self.left_out, self.late, self.first):
            terminalreporter.line(line, yellow=True)


def told_left_out(left_out: Mapping[str, int], late: Sequence[str], first: Iterable[str]) -> list[str]:
    """What a quick run did not do, in a few lines."""
    folders: Counter[str] = Counter()
    for file, count in left_out.items():
        folders["/".join(file.split("/")[:2])] += count
    most = ", ".join(f"{folder} {count}" for folder, count in folders.most_common())
    lines = [f"first came: {', '.join(sorted(first)) or 'nothing, for no file differs from the main branch'}"]
    lines.append(f"left out, the slowest: {sum(left_out.values())} ({most})" if left_out else "left out: nothing")
    if late:
        lines.append(f"not started, for the time was up: {len(late)}")
    return lines
