"""What keeps the house clean: no circle of imports, small files and folders, each shared word once, light imports."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FILES_MOST, LINES_MOST = 24, 300
"""Of a folder, directly; of a file of the package or a port."""

SHARED = {
    "TIERS",
    "LINKS",
    "LINK_OF",
    "KINDS",
    "KIB",
    "MIB",
    "GIB",
    "GIGA",
    "DTYPE_BYTES",
    "ELEMENT_BYTES",
    "STORED_BYTES",
    "LOGITS_DTYPE",
    "LOGITS_BYTES",
    "ALIGNMENT",
    "ALIGNMENT_BYTES",
    "SLOTS_OVERLAPPED",
    "SLOTS_SERIAL",
    "WEIGHT_SCHEMES",
    "CACHE_SCHEMES",
    "PUBLISHED",
    "SIZES",
}
"""Words that are defined once: who needs one imports it."""

HEAVY = ("scipy", "h5py", "flexref.planner", "flexref.machine")
"""What a block on its way through a model must not load."""


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted module, file) of all that is below `root/flexref` and `root/backends`."""
    for top in (root / "flexref", root / "backends"):
        for path in sorted(top.rglob("*.py")):
            names = path.relative_to(root if top.name == "flexref" else top).with_suffix("").parts
            yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


def circle(root: Path) -> list[str]:
    """Modules that import each other in a ring, wherever and for whatever they do it; empty if there is none."""
    files = dict(sources(root))
    imports: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        if module == "flexref":
            continue  # the front door's names load on their first use; nothing below imports it
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in files else str(node.module) for name in names]
            else:
                continue
            imports[module].update(name for name in names if name in files and name != module)
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def too_large(root: Path) -> list[str]:
    """Files of the package and its ports with too many lines; folders with too many files, those of tests too."""
    found, folders = [], defaultdict[Path, int](int)
    for _, path in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_MOST:
            found.append(f"{path.relative_to(root)} has {lines} lines")
    for top in ("flexref", "backends", "tests", "tools"):
        for path in (root / top).rglob("*.py"):
            folders[path.parent.relative_to(root)] += 1
    return found + [f"{folder} has {count} files" for folder, count in folders.items() if count > FILES_MOST]


def assigned(tree: ast.Module) -> Iterator[str]:
    """Names that a module assigns at its top level."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (name.id for name in names if isinstance(name, ast.Name))


def twice(root: Path) -> list[str]:
    """Shared words that two modules assign, and classes of one name in two modules of flexref."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, path in sources(root):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in assigned(tree):
            if name in SHARED:
                places[name].append(module)
        if path.is_relative_to(root / "flexref"):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places[f"class {node.name}"].append(module)
    return [f"{name} in {', '.join(modules)}" for name, modules in places.items() if len(modules) > 1]


def loaded(statement: str) -> list[str]:
    """Modules that `statement` loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def heavy(modules: list[str]) -> list[str]:
    """Those of `modules` that are in `HEAVY`, or below."""
    return [name for name in modules if any(name == part or name.startswith(f"{part}.") for part in HEAVY)]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_no_folder_holds_too_many_files_and_no_file_too_many_lines() -> None:
    assert too_large(ROOT) == []


def test_every_shared_word_and_every_class_is_defined_once() -> None:
    assert twice(ROOT) == []


@pytest.mark.parametrize("module", ["flexref.block.executor", "flexref.units", "flexref.engine.results"])
def test_what_runs_a_block_loads_no_planner_no_machine_no_scipy_and_no_h5py(module: str) -> None:
    assert heavy(loaded(f"import {module}")) == []


def test_who_does_not_chat_loads_no_template_language() -> None:
    assert "jinja2" not in loaded("import flexref.engine.engine, flexref.text.tokenizer, flexref.cli.inspect")


def plant(root: Path, **files: str) -> Path:
    """A tree with these files: `block_a` is flexref/block/a.py."""
    (root / "backends").mkdir()
    for name, text in files.items():
        path = root / "flexref" / f"{name.replace('_', '/', 1)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "back",
    [
        "from flexref.block import a",
        "from flexref.block.a import one",
        "import flexref.block.a",
        "if TYPE_CHECKING:\n    from flexref.block.a import one",
        "def f():\n    from flexref.block.a import one",
    ],
)
def test_the_checker_finds_a_planted_circle(back: str, tmp_path: Path) -> None:
    root = plant(tmp_path, block_a="from flexref.engine import b\n", engine_b="import flexref.tiers.c\n", tiers_c=back)
    assert set(circle(root)) == {"flexref.block.a", "flexref.engine.b", "flexref.tiers.c"}


def test_the_checker_lets_a_chain_pass(tmp_path: Path) -> None:
    files = {"block_a": "import os\nfrom flexref.block import b\nfrom flexref.block import c\n", "block_c": ""}
    assert circle(plant(tmp_path, **files, block_b="from flexref.block.c import two\n")) == []


def test_the_checker_finds_planted_files_and_folders_that_are_too_large(tmp_path: Path) -> None:
    root = plant(tmp_path, block_long="\n" * 301, block_fits="\n" * 300, **{f"tiers_n{n}": "" for n in range(25)})
    assert too_large(root) == ["flexref/block/long.py has 301 lines", "flexref/tiers has 25 files"]


def test_the_checker_finds_planted_words_and_classes_that_stand_twice(tmp_path: Path) -> None:
    both = {"block_a": "MIB, GIB = 1, 2\nclass Row: ...\n", "tiers_b": "GIB: int = 2\nMINE = 1\nclass Row: ...\n"}
    root = plant(tmp_path, **both, tiers_c="MINE = 1\nfrom flexref.block.a import MIB, Row\n")
    assert twice(root) == ["GIB in flexref.block.a, flexref.tiers.b", "class Row in flexref.block.a, flexref.tiers.b"]


def test_the_checker_knows_what_is_heavy() -> None:
    assert "flexref.machine.curves" in heavy(loaded("import flexref.machine.machine"))
    assert heavy(["scipy.linalg", "h5py", "scipyx", "flexref.planner.program.lp", "flexref.block"]) == [
        "scipy.linalg",
        "h5py",
        "flexref.planner.program.lp",
    ]


def test_every_script_without_a_suffix_is_linted() -> None:
    """Ruff finds a file by its suffix, or by its name in `extend-include`."""
    first_lines = {
        path: path.read_bytes().split(b"\n", 1)[0]
        for path in (ROOT / "tools").iterdir()
        if path.is_file() and not path.suffix
    }
    scripts = {f"tools/{path.name}" for path, first in first_lines.items() if first.endswith(b"python3")}
    assert len(scripts) > 10
    (line,) = re.findall(r"^extend-include = \[(.*)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r'"([^"]+)"', line)) == scripts
