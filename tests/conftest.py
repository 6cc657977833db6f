"""For every test: hypothesis profiles, loud skips, `--require`, Ctrl-C, a folder for measured machines, tiny models."""

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from flexref.architecture.spec import ModelSpec
from flexref.backend import registry
from flexref.backend.capabilities import Capabilities
from flexref.check.models import write_model
from flexref.errors import BackendUnavailable
from flexref.profile.sizes import Sizes

# Tables are as wide as COLUMNS says: a process of pytest-xdist is told 80, whatever the tests' own terminal is.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

PROFILE_VARIABLE = "FLEXREF_HYPOTHESIS_PROFILE"
PROFILES = {
    # The same few examples every time: a run that turns red is the change's fault.
    "quick": settings(max_examples=25, derandomize=True, database=None),
    # Before a merge, and after touching arithmetic: new examples every time.
    "thorough": settings(max_examples=300),
    "nightly": settings(max_examples=3000),
}

SKIPS: pytest.StashKey[Counter[str]] = pytest.StashKey()
PASSES: pytest.StashKey[Counter[str]] = pytest.StashKey()
SKIPPED_MODULES: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""Reasons by node: with several workers each collects every module, and a module is still one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        metavar="BACKEND",
        action="append",
        default=[],
        help="this backend must be tested here: each test skipped for it fails, and so does a run without a test of it",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name, profile in PROFILES.items():
        # No deadline, no complaint of slowness: a busy machine is not a failure, and a hang meets the test's timeout.
        settings.register_profile(
            name, profile, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
        )
    profile_name = os.environ.get(PROFILE_VARIABLE, "quick")
    if profile_name not in PROFILES:
        raise pytest.UsageError(f"{PROFILE_VARIABLE}={profile_name}: must be one of {', '.join(PROFILES)}")
    settings.load_profile(profile_name)
    if settings.default.derandomize and hasattr(providers, "_get_local_constants"):
        # Hypothesis also draws what stands in our modules that are loaded so far (since 6.131): which those are depends
        # on the tests that this process has run before, and so would the examples of every test.
        providers._get_local_constants = lambda: providers._local_constants
    for name in config.getoption("--require"):
        if name not in registry.installed():
            raise pytest.UsageError(f"--require {name}: not installed; installed: {', '.join(registry.installed())}")
    config.stash[SKIPS], config.stash[PASSES], config.stash[SKIPPED_MODULES] = Counter(), Counter(), {}
    config.pluginmanager.register(Worker() if hasattr(config, "workerinput") else Counts(config))
    # A shell has what it runs in the background ignore Ctrl-C, and commands that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class QuickIsTiny(Sizes):
    """A quick profile takes next to no time."""

    @classmethod
    def quick(cls) -> Sizes:
        return Sizes.tiny()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Machines that are measured for policies are kept for this session, apart from the user's own, and not well; nor
    are the rates beside which `flexref bench` shows times, but in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        cache, session = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
        # What numba compiles takes longer than what is tested of it: all processes of a session keep it in one place.
        numba = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "numba"
        numba.mkdir(exist_ok=True)
        (cache / "numba").symlink_to(numba)
        patch.setenv("FLEXREF_CACHE_DIR", str(cache))
        patch.setattr("flexref.profile.measure.Sizes", QuickIsTiny)
        patch.setattr("flexref.bench.rates.COPY_BYTES", (1 << 16,))
        patch.setattr("flexref.bench.rates.PRODUCT_WIDTHS", (32, 64))
        patch.setattr("flexref.bench.disk_rates.DISK_BYTES", 1 << 20)
        yield


def names(backend: str, text: str) -> bool:
    """Whether `text`, a reason or a test's name, names `backend` as a word, `flexref_cupy` and `[cupy-3]` included."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(backend)}(?![A-Za-z0-9])", text) is not None


def skip_reason(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why a test or module was skipped, if it was; a skip that names a required backend becomes a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    for backend in config.getoption("--require"):
        if names(backend, f"{report.nodeid} {reason}"):
            report.outcome = "failed"
            report.longrepr = f"--require {backend}: {report.nodeid} was skipped ({reason})"
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A worker's report comes to the process that counts with all its attributes.
    report.skip_reason = skip_reason(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    reason = skip_reason(collector.config, report)
    if reason is not None:
        collector.config.stash[SKIPPED_MODULES][report.nodeid] = reason
    return report


class Counts:
    """What is counted where all reports arrive: in the only process, or in the one that has workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skip_reason is not None:
            self.config.stash[SKIPS][report.skip_reason] += 1
        elif report.passed and report.when == "call":
            required = self.config.getoption("--require")
            self.config.stash[PASSES].update(backend for backend in required if names(backend, report.nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that died has told nothing; its tests are failures.
        self.config.stash[SKIPPED_MODULES].update(getattr(node, "workeroutput", {}).get("skipped_modules", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        collecting_only = self.config.getoption("collectonly")
        if session.exitstatus == pytest.ExitCode.OK and not collecting_only and untested(self.config):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Worker:
    """One of several processes that run tests: it counts nothing, and tells what it could not collect."""

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        session.config.workeroutput["skipped_modules"] = session.config.stash[SKIPPED_MODULES]


def untested(config: pytest.Config) -> list[str]:
    """The required backends of which no test has passed."""
    return [backend for backend in config.getoption("--require") if not config.stash[PASSES][backend]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = config.stash[SKIPS] + Counter(config.stash[SKIPPED_MODULES].values())
    if skips:
        terminalreporter.section(f"{skips.total()} skipped: these prove nothing here", yellow=True, bold=True)
        for reason, count in skips.most_common():
            terminalreporter.line(f"{count:5d}  {reason}", yellow=True)
    for backend in untested(config):
        terminalreporter.line(f"--require {backend}: no test of it passed", red=True, bold=True)


ModelFile = Callable[..., str]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """Path of a random model's weight file, made once for each combination."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[Any, str] = {}

    def path(spec: ModelSpec, scheme: str = "none", dtype: str = "float32", seed: int = 0) -> str:
        key = (spec, scheme, dtype, seed)
        if key not in made:
            made[key] = str(folder / f"{len(made)}.h5")
            write_model(Path(made[key]), spec, scheme=scheme, dtype=dtype, seed=seed)
        return made[key]

    return path


class CountingBackend(NumpyBackend):
    """The numpy port with an account of its own: bytes that are really allocated now, and the most there ever were."""

    def __init__(self, scratch_bytes: int = 1 << 16) -> None:
        super().__init__(scratch_bytes)
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._tiers: dict[int, tuple[str, int]] = {}

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        self._tiers[id(buffer)] = (tier, buffer.nbytes)
        self.live[tier] += buffer.nbytes
        self.peak[tier] = max(self.peak[tier], self.live[tier])
        return buffer

    def release(self, buffer: Any) -> None:
        tier, nbytes = self._tiers.pop(id(buffer))
        self.live[tier] -= nbytes
        super().release(buffer)


OpenFiles = Callable[[], set[tuple[str, str]]]


@pytest.fixture(scope="session")
def open_files() -> OpenFiles:
    """What every descriptor of this process stands for now, but the one that lists them.

    A test asks for no more than there was: what an earlier one left may be closed meanwhile. What is read of /proc does
    not count: threads that look at this process now and then, as those of Dask, may just be at it.
    """

    def found() -> set[tuple[str, str]]:
        files = set()
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                file = os.readlink(f"/proc/self/fd/{number}")
                if not file.startswith("/proc/"):
                    files.add((number, file))
        return files

    return found


PORTS: dict[str, Callable[[Capabilities], bool]] = {
    "computing_port": lambda caps: True,
    "invariant_port": lambda caps: caps.row_invariant,
}
"""What ports promise that a test is run with, by the argument that names them."""


def ports_that(promise: Callable[[Capabilities], bool]) -> Generator[Any, None, None]:
    """The name of every installed port that computes and promises so much; a skipped case for an absent device."""
    for name in registry.installed():
        try:
            backend = registry.create(name)
        except BackendUnavailable as error:
            yield pytest.param(name, id=name, marks=pytest.mark.skip(reason=str(error)))
            continue
        if backend.caps.computes and promise(backend.caps):
            yield pytest.param(name, id=name)
        backend.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`computing_port` is each of them in turn, `invariant_port` each whose rows have bits of their own.

    No device is opened where no test asks for it.
    """
    for fixture, promise in PORTS.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, list(ports_that(promise)), scope="session")


@pytest.fixture(scope="session")
def counting() -> type[CountingBackend]:
    """The class of ports that count."""
    return CountingBackend


@pytest.fixture(scope="session")
def caught() -> Callable[[type[RuleBasedStateMachine]], BaseException | None]:
    """What a state machine finds wrong, None if it finds nothing: for tests of the machines themselves."""
    looking = settings(max_examples=1000, derandomize=True, database=None, phases=[Phase.generate])

    def run(machine: type[RuleBasedStateMachine]) -> BaseException | None:
        try:
            run_state_machine_as_test(machine, settings=looking)  # type: ignore[no-untyped-call]
        except BaseException as error:
            return error
        return None

    return run
