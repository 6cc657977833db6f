"""The registry of ports: what is installed, and that absence, ignorance and a bug are told apart."""

import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from flexref.backend import registry
from flexref.errors import BackendUnavailable, UnknownBackend

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Call with port=source to make each an installed port package whose backend is `make`."""
    monkeypatch.syspath_prepend(tmp_path)

    def entries(**sources: str) -> None:
        found = []
        for name, source in sources.items():
            (tmp_path / f"planted_{name}.py").write_text(source, encoding="utf-8")
            monkeypatch.delitem(sys.modules, f"planted_{name}", raising=False)
            found.append(EntryPoint(name, f"planted_{name}:make", registry.GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.GROUP else [])

    return entries


def test_the_ports_of_this_repository_are_installed() -> None:
    assert {"numpy", "dry"} <= set(registry.installed())


@pytest.mark.parametrize("name", ["numpy", "dry"])
def test_a_port_of_this_repository_needs_no_options_to_be_made(name: str) -> None:
    assert registry.create(name) is not None


def test_options_reach_the_port(install: Install) -> None:
    install(mirror="def make(**options): return options")
    assert registry.create("mirror", threads=2) == {"threads": 2}


@pytest.mark.parametrize(("device", "option"), [("1", 1), ("cuda:1", "cuda:1"), ("a b", "a b")])
def test_a_name_may_name_a_device_which_is_the_ports_option(device: str, option: object, install: Install) -> None:
    install(many="def make(device=None, **options): return {'device': device, **options}")
    assert registry.create(f"many:{device}", threads=2) == {"device": option, "threads": 2}
    assert registry.create("many") == {"device": None}
    registry.check_registered(f"many:{device}")
    registry.start_device(f"many:{device}")


@pytest.mark.parametrize("source", ["def make(): return {}", "make = dict"])
def test_a_device_of_a_port_that_takes_none_is_refused(source: str, install: Install) -> None:
    install(single=source)
    with pytest.raises(UnknownBackend, match=r"^backend 'single' takes no device, found 'single:1'; use 'single'$"):
        registry.create("single:1")


def test_a_name_that_ends_before_its_device_is_unknown(install: Install) -> None:
    install(many="def make(device=None): return device")
    for call in (registry.create, registry.check_registered, registry.start_device, registry.maker):
        with pytest.raises(UnknownBackend, match=r"^unknown backend 'many:'; installed: many$"):
            call("many:")


def test_what_a_port_names_to_be_loaded_before_processes_fork_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("slow", "library", registry.PRELOADS), EntryPoint("other", "another", registry.PRELOADS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.PRELOADS else [])
    assert registry.preloaded("slow") == registry.preloaded("slow:1") == ("library",)
    assert registry.preloaded("numpy") == ()


def test_an_unknown_name_is_answered_with_the_installed_ones(install: Install) -> None:
    install(zeta="make = dict", alpha="make = dict")
    assert registry.installed() == ("alpha", "zeta")
    with pytest.raises(UnknownBackend, match=r"^unknown backend 'cuda'; installed: alpha, zeta$"):
        registry.create("cuda")


def test_an_unknown_name_where_nothing_is_installed_says_so(install: Install) -> None:
    install()
    with pytest.raises(UnknownBackend, match="installed: none"):
        registry.create("numpy")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library\nmake = dict", "No module named 'no_such_library'"),
        ("def make():\n    import no_such_library", "No module named 'no_such_library'"),
        ("make = 0\nraise ImportError('libcuda.so.1:\\n cannot open')", "libcuda.so.1: cannot open"),
        (
            "from flexref.errors import BackendUnavailable\ndef make(): raise BackendUnavailable('no GPU is here')",
            "no GPU is here",
        ),
    ],
)
def test_a_port_whose_library_or_device_is_absent_is_unavailable_in_one_line(
    source: str, reason: str, install: Install
) -> None:
    install(gpu=source)
    with pytest.raises(BackendUnavailable) as caught:
        registry.create("gpu")
    assert str(caught.value) == f"backend 'gpu' is not available: {reason}"


def test_a_port_that_was_removed_is_unavailable(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("gone", "planted_gone:make", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(BackendUnavailable, match="No module named 'planted_gone'"):
        registry.create("gone")


@pytest.mark.parametrize(
    ("source", "bug"),
    [
        ("from flexref.backend.registry import no_such_name\nmake = dict", ImportError),
        ("import flexref.no_such_module\nmake = dict", ImportError),
        ("import planted_broken.kernels\nmake = dict", ImportError),
        ("making = dict", AttributeError),
        ("def make(): return [][1]", IndexError),
    ],
)
def test_a_broken_port_is_a_bug_and_not_an_absent_one(source: str, bug: type[Exception], install: Install) -> None:
    install(broken=source)
    with pytest.raises(bug):
        registry.create("broken")


def test_two_packages_that_claim_one_name_are_refused_but_one_seen_twice_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(*values: str) -> Any:
        return lambda group: [EntryPoint("numpy", value, group) for value in values]

    monkeypatch.setattr(registry, "entry_points", found("ours:make", "ours:make"))
    assert registry.installed() == ("numpy",)
    monkeypatch.setattr(registry, "entry_points", found("ours:make", "theirs:make"))
    with pytest.raises(UnknownBackend, match="two packages register the backend 'numpy': ours:make and theirs:make"):
        registry.installed()


def test_a_port_may_start_its_device_on_a_thread_and_need_not(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(plain="make = dict", absent="raise ImportError('no library')")
    for name in ("plain", "absent", "numpy"):
        monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("nothing is to be started"))
        if name in registry.installed():
            registry.start_device(name)
    with pytest.raises(UnknownBackend):
        registry.start_device("nothing")
    monkeypatch.undo()
    package = tmp_path / "early_port"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "starting.py").write_text("import threading\nbegun = threading.Event()\nbegin = begun.set\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("early", "early_port.backend:make", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    registry.start_device("early")
    begun = sys.modules["early_port.starting"].begun
    assert begun.wait(60)
    monkeypatch.delitem(sys.modules, "early_port.starting")
    monkeypatch.delitem(sys.modules, "early_port")
