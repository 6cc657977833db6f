"""Shared by tests of checked runs: ports of `tests/meta`, a tiny model and its policies, and one call that checks."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexref.architecture.spec import ModelSpec
from flexref.check.portcheck import PortCheck, PortReport, check_port
from flexref.policy import Policy
from flexref.text.prompts import Prompt

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 3, 2, 64, activation="gelu")
ROWS = [[5, 6, 7, 44, 9], [10], [3, 60]]
HOME, GROUPS, CODES = Policy(), Policy(rows_per_group=1, groups_per_block=3), Policy(cache_scheme="int4")
MOVING = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=2)


def ports_of(name: str) -> Any:
    """The module of `tests/meta` that defines ports."""
    path = Path(__file__).parents[1] / "meta" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HALF = ports_of("test_half_port").HalfBackend
"""A right port with float16 activations."""


def checked(
    path: Path, make_port: Callable[[], Any], policy: Policy = HOME, rows: Any = ROWS, tokens: int = 4
) -> PortReport:
    """What a check of a port finds on the model at `path`."""
    prompts = [Prompt(token_ids=tuple(row)) for row in rows]
    return check_port(PortCheck(str(path), make_port, prompts, tokens, {"policy": policy}))
