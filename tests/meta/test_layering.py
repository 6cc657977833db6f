"""Who may import whom: the ranks of the design as a table, checked against every import statement of the package."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def dependencies() -> frozenset[str]:
    """The import names of the run-time dependencies that pyproject.toml declares (each is its package's name)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert declared is not None
    return frozenset(re.findall(r'"([\w.-]+?)[<>=~!]', declared[1]))


@dataclass(frozen=True)
class Rule:
    """What a part may import beside the standard library: modules of flexref, each with all below it, and libraries."""

    modules: frozenset[str]
    libraries: frozenset[str] | None
    """None: any library but the ports."""


def rule(modules: str, libraries: str = "") -> Rule:
    names = frozenset(f"flexref.{name.replace('/', '.')}" for name in modules.split())
    return Rule(names, frozenset(libraries.split()))


COMPUTING = " ".join(dependencies() - {"click", "rich"})

RANKS = (
    "errors units files version json_types policy architecture",
    "backend schedule text machine storage",
    "model sampling tiers planner/program",
    "block calibration",
    "engine",
    "simulator profile quality",
    "planner",
    "loading",
    "bench check harness batch_job",
    "testing",
    "cli",
)
"""Every part in its rank: it may see the parts of the ranks above its own line, and none of its own rank."""


def below(rank: int, *without: str) -> str:
    """The parts of all ranks before number `rank`, but for those named."""
    return " ".join(part for line in RANKS[:rank] for part in line.split() if part not in without)


GROUND = below(1)

RULES = {
    "errors": rule(""),
    "units": rule("errors"),
    "files": rule("errors"),
    "version": rule(""),
    "json_types": rule("errors units files"),
    "policy": rule("errors units files json_types"),
    "architecture": rule("errors units"),
    "backend": rule(GROUND, "numpy"),
    "schedule": rule(GROUND),
    "text": rule(GROUND, "tokenizers jinja2"),
    "machine": rule(GROUND, "numpy platformdirs"),
    "storage": rule(GROUND, "numpy h5py safetensors ml_dtypes xxhash"),
    "model": rule(f"{GROUND} backend"),
    "sampling": rule(f"{GROUND} backend", "numpy"),
    "tiers": rule(f"{GROUND} backend storage", "numpy psutil xxhash"),
    "planner/program": rule(f"{GROUND} machine", "numpy scipy"),
    # What runs a job knows neither a machine's speed nor who chose the policy.
    "block": rule(below(3, "machine", "planner/program"), "numpy"),
    "calibration": rule(below(3, "machine", "planner/program"), "numpy scipy"),
    "engine": rule(below(4, "machine", "planner/program", "calibration"), "numpy scipy"),
    "simulator": rule(below(5), "numpy"),
    "profile": rule(below(5), COMPUTING),
    "quality": rule(below(5), "numpy scipy"),
    "planner": rule(below(6), "numpy scipy"),
    "loading": rule(below(7)),
    "bench": rule(below(8), COMPUTING),
    "check": rule(below(8), COMPUTING),
    # The lm-evaluation-harness is an extra; nothing but its own command imports what is here.
    "harness": rule(below(8), f"{COMPUTING} lm_eval tqdm"),
    # Prometheus and Dask are extras, imported where they are asked for.
    "batch_job": rule(below(8), f"{COMPUTING} prometheus_client dask distributed"),
    "testing": rule(below(9), f"{COMPUTING} hypothesis"),
    # Plots are drawn by matplotlib where it is installed: an option, not a dependency.
    "cli": rule(below(10), f"{COMPUTING} click rich matplotlib lm_eval"),
    "data": rule(""),
    "__main__": rule("cli"),
    # The library's front door: loading, and what uses a loaded engine if users call it by a name of flexref.
    "__init__": rule(f"{below(8)} batch_job/library"),
}
"""Every part of flexref, and what it may see beside itself; `planner/program` is a part of its own inside a folder."""

PORT = Rule(
    frozenset(
        {
            "flexref.errors",
            "flexref.units",
            "flexref.backend",
            "flexref.storage.quant",
            "flexref.machine",
        }
    ),
    None,
)
"""A port knows operators, bytes, clocks and the law of quantization: no model, no schedule, and no other port."""

OTHER_PORTS = {"flexref_numba": {"flexref_numpy"}, "flexref_cupy": {"flexref_numba.host_attention"}}
"""But for these: one that computes in the host's memory takes from another what is not its point, and one that attends
on the host takes that of another, which knows no port."""


PARTS = frozenset(f"flexref.{part.replace('/', '.')}" for part in RULES)


@dataclass(frozen=True)
class Importer:
    """One source file: its dotted module, whether it is a package's `__init__`, and the rule that it is under."""

    module: str
    is_package: bool
    part: str
    rule: Rule | None


def imported(source: str, importer: Importer) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that `source` imports, anywhere in it: `from a import b` is `a.b`."""
    package = importer.module if importer.is_package else importer.module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
            "import_module",
            "__import__",
        }:
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def complaint(name: str, importer: Importer, ports: frozenset[str]) -> str | None:
    """Why `importer` must not import `name`, or None if it may."""
    library = name.partition(".")[0]
    if importer.rule is None:
        return f"the part {importer.part!r} has no place in the table of ranks"
    if library == "flexref" or library in ports:
        seen = {*importer.rule.modules, importer.part}
        # The innermost part that holds it decides: to see a folder is not to see a part inside it.
        holder = max((module for module in {*PARTS, *seen} if is_within(name, module)), key=len, default=None)
        return None if holder in seen else f"{importer.part} must not see {name}"
    if library in sys.stdlib_module_names or importer.rule.libraries is None or library in importer.rule.libraries:
        return None
    return f"{importer.part} must not use {library}"


def importers(root: Path) -> Iterator[tuple[Path, Importer]]:
    """Every source file below `root/flexref` and `root/backends`."""
    for top in (root / "flexref", root / "backends"):
        for path in sorted(top.rglob("*.py")):
            names = path.relative_to(root if top.name == "flexref" else top).with_suffix("").parts
            is_package = names[-1] == "__init__"
            module = ".".join(names[:-1] if is_package else names)
            if top.name == "backends":
                seen = PORT.modules | OTHER_PORTS.get(names[0], set())
                yield path, Importer(module, is_package, names[0], Rule(seen, PORT.libraries))
            else:
                part = "/".join(names[1:3]) if "/".join(names[1:3]) in RULES else names[1]
                yield path, Importer(module, is_package, f"flexref.{part.replace('/', '.')}", RULES.get(part))


def violations(root: Path) -> list[str]:
    """One line per forbidden import below `root`: where, and what is wrong with it."""
    ports = frozenset(path.name for path in (root / "backends").iterdir() if path.is_dir())
    found = []
    for path, importer in importers(root):
        for line, name in imported(path.read_text(encoding="utf-8"), importer):
            if why := complaint(name, importer, ports):
                found.append(f"{path.relative_to(root)}:{line}: {why}")
    return found


def test_no_part_imports_what_its_rank_must_not_see() -> None:
    assert violations(ROOT) == []


def test_the_checker_reads_the_whole_package() -> None:
    modules = {importer.module for _, importer in importers(ROOT)}
    assert {"flexref", "flexref.errors", "flexref.cli.main", "flexref.backend.registry", "flexref_numpy"} <= modules


def test_the_top_readme_shows_the_ranks_and_what_a_port_sees() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (\d+) \| `([\w/]+)` \|", readme, re.MULTILINE)
    assert shown == [(str(rank), part) for rank, line in enumerate(RANKS) for part in line.split()]
    port = re.search(r"A port sees\s(.*?)\.\s", readme, re.DOTALL)
    assert port is not None
    assert {f"flexref.{name}" for name in re.findall(r"`([\w.]+)`", port[1])} == PORT.modules


def plant(root: Path, where: str, source: str) -> list[str]:
    """What the checker says of a tree with two ports and one file, `where`, that holds `source`."""
    for port in ("flexref_numpy", "flexref_dry"):
        (root / "backends" / port).mkdir(parents=True)
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return violations(root)


@pytest.mark.parametrize(
    ("where", "source", "why"),
    [
        ("flexref/errors.py", "import numpy", "must not use numpy"),
        ("flexref/architecture/spec.py", "from flexref.policy import Policy", "must not see flexref.policy"),
        ("flexref/policy.py", "from . import architecture", "must not see flexref.architecture"),
        (
            "flexref/storage/checkpoint/folder.py",
            "from flexref.backend import protocol",
            "must not see flexref.backend",
        ),
        ("flexref/storage/checkpoint/folder.py", "from ...text.stop import Stop", "must not see flexref.text"),
        ("flexref/storage/__init__.py", "from ..text import Stop", "must not see flexref.text"),
        ("flexref/storage/checkpoint/folder.py", "import torch", "must not use torch"),
        ("flexref/schedule/zigzag.py", "import flexref.tiers.pool", "must not see flexref.tiers"),
        ("flexref/model/opt.py", "import numpy as np", "must not use numpy"),
        ("flexref/model/opt.py", "from flexref.sampling.logits import top_k", "must not see flexref.sampling"),
        ("flexref/tiers/pool.py", "from flexref.schedule import zigzag", "must not see flexref.schedule"),
        ("flexref/block/executor.py", "import flexref_numpy", "must not see flexref_numpy"),
        ("flexref/block/rows.py", "from flexref.machine.curves import Curve", "must not see flexref.machine"),
        ("flexref/block/rows.py", "from flexref.planner.program import lp", "must not see flexref.planner.program"),
        ("flexref/profile/links.py", "from flexref.planner import advisor", "must not see flexref.planner"),
        ("flexref/planner/program/lp.py", "from flexref.planner import choose", "must not see flexref.planner"),
        ("flexref/simulator/a.py", "from flexref.profile import links", "must not see flexref.profile"),
        ("flexref/engine/session.py", "from flexref.planner import advisor", "must not see flexref.planner"),
        ("flexref/block/executor.py", "from flexref.cli.main import run", "must not see flexref.cli"),
        ("flexref/block/executor.py", "import rich", "must not use rich"),
        ("flexref/tiers/pool.py", "import flexref", "must not see flexref"),
        ("flexref/tiers/pool.py", "from flexref import Policy", "must not see flexref.Policy"),
        ("flexref/check/checked.py", "from flexref.cli.check import command", "must not see flexref.cli"),
        ("flexref/check/laws.py", "from flexref.testing import bench", "must not see flexref.testing"),
        ("flexref/extras/new.py", "import os", "no place in the table"),
        ("flexref/backend/registry.py", "def f():\n    from flexref.tiers import pool", "must not see flexref.tiers"),
        ("flexref/backend/a.py", "if TYPE_CHECKING:\n    from flexref.model import x", "must not see flexref.model"),
        ("flexref/backend/a.py", "importlib.import_module('flexref.engine')", "must not see flexref.engine"),
        ("backends/flexref_dry/a.py", "from flexref_numpy.backend import x", "must not see flexref_numpy"),
        ("backends/flexref_numba/a.py", "from flexref_dry.backend import x", "must not see flexref_dry"),
        (
            "backends/flexref_dry/a.py",
            "from flexref.architecture.spec import ModelSpec",
            "must not see flexref.architecture.spec",
        ),
        (
            "backends/flexref_dry/a.py",
            "from flexref.storage import weightfile",
            "must not see flexref.storage.weightfile",
        ),
    ],
)
def test_the_checker_catches_a_planted_violation(where: str, source: str, why: str, tmp_path: Path) -> None:
    (found,) = plant(tmp_path, where, source)
    assert found.startswith(f"{where}:{len(source.splitlines())}: ")
    assert why in found


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("flexref/policy.py", "from flexref.errors import PolicyError"),
        ("flexref/backend/registry.py", "from .protocol import Backend"),
        ("flexref/model/opt.py", "from flexref.backend.protocol import Array"),
        ("flexref/storage/writer.py", "import h5py, os.path\nfrom flexref.version import __version__"),
        ("flexref/engine/generate.py", "import numpy\nfrom flexref.sampling.logits import top_k"),
        (
            "backends/flexref_dry/a.py",
            "import cupy\nfrom flexref.storage import quant\nfrom flexref_dry import backend",
        ),
        ("flexref/__main__.py", "from flexref.cli.main import main"),
    ],
)
def test_the_checker_lets_a_permitted_import_pass(where: str, source: str, tmp_path: Path) -> None:
    assert plant(tmp_path, where, source) == []


def test_importing_flexref_loads_nothing_but_its_errors() -> None:
    code = "import sys; old = set(sys.modules); import flexref; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names] == [
        "flexref",
        "flexref.errors",
    ]
