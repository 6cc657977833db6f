"""Names of tensors are made in the architecture from roles: no other code spells one, and so none takes one apart."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SPELLED = re.compile(
    r"(?<!\w)(layers|embed|head)/|(?<!\w)tokens/(?!s\b)"
    r"|attention_(norm|qkv|out)\b|ffn_(norm|up|down)\b|project_(in|out)\b|_proj\b|\bfc[12]\b|\bnorm/"
)
"""What only the name of a tensor has, in a weight file or in a checkpoint. Rates in tokens/s are none."""

MAKERS = frozenset({"program.py", "stages.py", "opt.py"})
"""Roles, and the two tables of names by role."""


def spelled(root: Path) -> Iterator[str]:
    """One line for every text of the code of `root/flexref`, docstrings left out, that spells (a part of) a name."""
    for path in sorted((root / "flexref").rglob("*.py")):
        if path.parent.name == "architecture" and path.name in MAKERS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told)
        for text in texts:
            if isinstance(text.value, str) and SPELLED.search(text.value):
                yield f"{path.relative_to(root)}:{text.lineno}: {text.value!r}"


def test_no_code_but_the_architecture_spells_the_name_of_a_tensor() -> None:
    assert list(spelled(ROOT)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('name.startswith("tokens/")', True),
        ('name.endswith("norm/weight")', True),
        ('prefix = f"layers/{layer:03d}"', True),
        ('"attention_qkv/" in name', True),
        ('tensors["embed/project_in"]', True),
        ('name = "self_attn.q_proj"', True),
        ('label = "tokens/s"', False),
        ('"""Of `layers/003/ffn_up/weight`."""', False),
        ('kind = "layers"', False),
    ],
)
def test_the_checker_finds_what_is_planted(source: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "flexref" / "model").mkdir(parents=True)
    (tmp_path / "flexref" / "model" / "planted.py").write_text(source, encoding="utf-8")
    assert bool(list(spelled(tmp_path))) == found
