"""Ports that are installed for a test alone: a folder on the path with their entry points."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

META = Path(__file__).parents[2] / "meta"
"""Where ports that are wrong on purpose live."""

Install = Callable[..., None]


def write_entry_points(folder: Path, **ports: str) -> None:
    """Register ports, `name="module:Class"`, for whoever has `folder` on the path."""
    about = folder / "planted_ports-0.1.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-ports\nVersion: 0.1\n")
    lines = [f"{name} = {where}" for name, where in ports.items()]
    (about / "entry_points.txt").write_text("\n".join(["[flexref.backends]", *lines, ""]))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`planted(source, name="module:Class")`: ports of this process and of those that it starts.

    `source` is what the module `planted_port` holds; modules of tests/meta can be named too.
    """

    def install(source: str = "", **ports: str) -> None:
        (tmp_path / "planted_port.py").write_text(source)
        write_entry_points(tmp_path, **ports)
        for folder in (META, tmp_path):
            monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        monkeypatch.chdir(tmp_path)

    return install
