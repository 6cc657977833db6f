"""Writes the package of a new port: every method of the protocol is there, and none is written; it knows no port."""

import ast
import inspect
import keyword
import os
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flexref.backend import protocol
from flexref.backend.protocol import Backend
from flexref.backend.registry import installed
from flexref.errors import StorageError, WrongCall
from flexref.testing.conformance.watch import method_law
from flexref.version import __version__

LONGEST_NAME = 40

LINE = 120
"""Letters of a line of source."""

INDENT = " " * 12

NAME = re.compile(r"[a-z]([a-z0-9_]*[a-z0-9])?")
"""No `_` at its end: the package would have a name that no installer takes."""

FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "{package}/__init__.py": "init.py.jinja",
    "{package}/backend.py": "backend.py.jinja",
    "{package}/py.typed": "py.typed.jinja",
    "tests/test_contract.py": "test_contract.py.jinja",
}
"""The files of a package, and the template of each."""


def check_name(name: str) -> None:
    """`WrongCall` unless a port can be called `name`: an identifier in small letters that no installed port has."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > LONGEST_NAME:
        raise WrongCall(
            f"{name!r:.80} is no name for a port: needed an identifier of small letters, digits and _ that begins with "
            f"a letter and does not end with _, at most {LONGEST_NAME} of them, and no word of Python's own"
        )
    if name in installed():
        raise WrongCall(f"a port called {name} is installed already; installed: {', '.join(installed())}")


def new_backend(name: str, folder: str) -> list[str]:
    """Write the package of a port `name` into `folder`, which is made; the paths of its files.

    Nothing that is there is touched: `StorageError` if any of the files is there, before one is written.
    """
    check_name(name)
    package = f"flexref_{name}"
    texts = {path.format(package=package): text for path, text in _texts(name, package).items()}
    paths = [Path(folder) / path for path in texts]
    for path in paths:
        if os.path.lexists(path):
            raise StorageError(
                f"cannot write {path}: it is there already, and nothing is replaced; give another folder"
            )
    try:
        for path, text in zip(paths, texts.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return [str(path) for path in paths]


def _texts(name: str, package: str) -> Mapping[str, str]:
    environment = Environment(
        loader=PackageLoader("flexref.testing", "templates"),
        autoescape=False,  # Python and TOML, made of a name that has been checked
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    values = {
        "name": name,
        "package": package,
        "class_name": f"{''.join(part.capitalize() for part in name.split('_'))}Backend",
        "version": __version__,
        "methods": _methods(),
        "imports": _imports(),
    }
    return {path: environment.get_template(template).render(values) for path, template in FILES.items()}


def _methods() -> str:
    """Every method of the protocol with its docstring, as source; each raises `NotImplementedError` with its law."""
    source = textwrap.dedent(inspect.getsource(Backend))
    lines, parts = source.splitlines(), list[str]()
    for node in _definitions():
        head = lines[node.lineno - 1 : node.body[0].end_lineno]
        parts.append("\n".join([*head, *_raised(f"{node.name}: {method_law(node.name)}")]))
    return "\n\n".join(parts)


def _raised(text: str) -> list[str]:
    """The statement that raises `NotImplementedError` with a text, in as many lines as it takes."""
    whole = f"        raise NotImplementedError({_quoted(text)})"
    if len(whole) <= LINE:
        return [whole]
    pieces = textwrap.wrap(text, LINE - len(INDENT) - 2, drop_whitespace=False)
    return ["        raise NotImplementedError(", *(f"{INDENT}{_quoted(piece)}" for piece in pieces), "        )"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _definitions() -> list[ast.FunctionDef]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(Backend))).body
    assert isinstance(tree, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _imports() -> str:
    """Import statements for every name in the methods' signatures."""
    modules, names = set[str](), defaultdict[str, set[str]](set)
    for node in _definitions():
        for part in ast.walk(node.args if node.returns is None else ast.Tuple([node.args, node.returns])):  # type: ignore[list-item]
            if isinstance(part, ast.Name) and hasattr(protocol, part.id):
                _place(part.id, getattr(protocol, part.id), modules, names)
    names["flexref.backend.capabilities"].add("Capabilities")
    names["flexref.backend.recording"].add("DirectCalls")
    lines = {of: f"from {of} import {', '.join(sorted(each))}" for of, each in names.items()}
    ours = [lines[of] for of in sorted(lines) if of.partition(".")[0] == "flexref"]
    return "\n".join([*(lines[of] for of in sorted(lines) if lines[of] not in ours), "", *sorted(modules), *ours])


def _place(name: str, found: Any, modules: set[str], names: Mapping[str, set[str]]) -> None:
    """Where a name of the protocol's annotations is imported from."""
    if isinstance(found, ModuleType):
        modules.add(f"import {found.__name__} as {name}")
        return
    home = str(getattr(found, "__module__", ""))
    outside = home.partition(".")[0] in ("collections", "typing", "contextlib")
    own = home if outside or inspect.isclass(found) else protocol.__name__
    names[own].add(name)
