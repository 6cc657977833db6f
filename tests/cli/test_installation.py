"""`flexref info`, `models` and `backends`: what only an error showed before, in text and in JSON."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

import flexref
from flexref.architecture.published import SIZES
from flexref.architecture.stages import parameters
from flexref.backend import presence, registry
from flexref.block.memory_plan import record_layout
from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import BackendUnavailable
from flexref.policy import Policy
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file


def absent() -> NumpyBackend:
    raise BackendUnavailable("no device is here")


def broken() -> NumpyBackend:
    raise TypeError("a bug\nof the port")


@pytest.fixture
def three_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that works, one whose device is not here, and one with a bug."""
    entries = [EntryPoint("numpy", "flexref_numpy:NumpyBackend", registry.GROUP)]
    for maker in (absent, broken):
        monkeypatch.setattr(flexref, f"make_{maker.__name__}", maker, raising=False)
        entries.append(EntryPoint(maker.__name__, f"flexref:make_{maker.__name__}", registry.GROUP))
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(command_group(COMMANDS), arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], command: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(capsys, command, "--json"))
    return found


@pytest.mark.usefixtures("three_ports")
def test_backends_tells_what_each_port_can_do_or_why_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    found = {port["name"]: port for port in as_json(capsys, "backends")["backends"]}
    assert list(found) == ["absent", "broken", "numpy"]
    assert found["numpy"]["capabilities"] == asdict(NumpyBackend().caps)
    assert found["numpy"]["versions"] == {"numpy": np.__version__}
    assert (found["numpy"]["available"], found["numpy"]["problem"]) == (True, None)
    assert (found["absent"]["available"], found["absent"]["problem"]) == (False, "no device is here")
    assert found["broken"]["problem"] == "the port is broken: TypeError: a bug of the port"
    text = shown(capsys, "backends")
    assert "absent: cannot be used: no device is here\n" in text
    assert "broken: cannot be used: the port is broken: TypeError: a bug of the port\n" in text
    assert "flexref_numpy:NumpyBackend" in text
    assert "float32" in text


def test_a_port_that_was_made_to_be_listed_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[NumpyBackend] = []
    close = NumpyBackend.close

    def noted(port: NumpyBackend) -> None:
        closed.append(port)
        close(port)

    monkeypatch.setattr(NumpyBackend, "close", noted)
    shown(capsys, "backends")
    assert [type(port) for port in closed].count(NumpyBackend) == 1  # other ports derive from it


def test_models_are_the_built_in_one_and_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    found = {model["name"]: model for model in as_json(capsys, "models")["models"]}
    assert list(found) == ["demo", *SIZES]
    demo = open_weight_file(resolve("demo"))
    assert found["demo"]["weights_bytes"][demo.dtype] == demo.nbytes
    specs = {"demo": demo.spec, **SIZES}
    text = shown(capsys, "models")
    assert max(len(line) for line in text.splitlines()[:-1]) <= 80
    for name, spec in specs.items():
        model = found[name]
        assert (model["parameters"], model["layers"], model["width"]) == (parameters(spec), spec.layers, spec.width)
        assert model["weights_bytes"]["float16"] == 2 * parameters(spec)
        for stored, policy in (("float16", Policy()), ("int4", Policy(cache_scheme="int4"))):
            record = record_layout(spec, policy, "float16").record_bytes
            assert model["cache_bytes_per_token"][stored] == spec.layers * record
        assert name in text
    assert "325 GiB" in text


def test_info_tells_versions_processor_ports_and_folders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEXREF_CACHE_DIR", str(tmp_path))
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines" / "one.json").touch()
    found = as_json(capsys, "info")
    assert found["version"] == flexref.__version__
    assert found["libraries"]["numpy"] == np.__version__
    assert "matplotlib" in found["extras"]["plots"]
    assert found["cpu_cores"] >= 1
    assert found["memory_bytes"] > found["memory_free_bytes"] > 0
    assert all(library["threads"] >= 1 for library in found["blas"])
    assert (found["machines_folder"], found["machines_kept"]) == (str(tmp_path / "machines"), 1)
    assert {"numpy", "dry"} <= {port["name"] for port in found["backends"]}
    text = " ".join(shown(capsys, "info").split())
    for expected in (flexref.__version__, np.__version__, "1 measured machine (", str(tmp_path), "numpy: can be used"):
        assert expected in text


def test_info_loads_no_library_that_takes_long_and_says_whether_it_is_there() -> None:
    """In a process of its own, where nobody else has loaded one."""
    script = """
import sys
from flexref.cli.main import COMMANDS, command_group, run
code = run(command_group(COMMANDS), ["info", "--json"])
assert not {"torch", "numba", "llvmlite"} & sys.modules.keys()
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    ports = {port["name"]: port for port in json.loads(done.stdout)["backends"]}
    for name in {"numba", "torch"} & ports.keys():
        port, there = ports[name], find_spec(name) is not None
        assert (port["tried"], port["available"], port["capabilities"]) == (False, there, None)
        assert port["versions"] == ({name: metadata.version(name)} if there else {})
    assert ports["numpy"]["tried"]
    assert ports["numpy"]["capabilities"] == asdict(NumpyBackend().caps)


@pytest.mark.parametrize("there", [True, False])
def test_info_says_what_is_known_of_a_port_that_it_does_not_try(
    there: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [EntryPoint("torch", "flexref_torch:TorchBackend", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])
    monkeypatch.setattr(presence, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(presence, "version", lambda name: "9.8.7")
    text = " ".join(shown(capsys, "info").split())
    if there:
        assert "backends torch: is installed (flexref backends tries it): torch 9.8.7 folders" in text
    else:
        assert "backends torch: cannot be used: PyTorch is not installed; pip install '.[torch]' in the" in text
    (port,) = as_json(capsys, "info")["backends"]
    assert (port["tried"], port["available"]) == (False, there)


def test_info_can_be_told_where_nothing_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    monkeypatch.setattr("flexref.profile.installation.PACKAGE", "no-such-package")
    found = as_json(capsys, "info")
    assert (found["libraries"], found["extras"], found["backends"]) == ({}, {}, [])
    assert "backends   none" in shown(capsys, "info")
