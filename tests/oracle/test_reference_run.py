"""A reference run beside `transformers`: the recipe of check/README as it is printed, and every type of results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle_kit import torch
from oracle_kit.checkpoints import SMALL_125M, SMALL_350M, SMALL_GALACTICA, Variant, new_model
from oracle_kit.compare import weight_file
from transformers import OPTForCausalLM

import flexref.check
from flexref.check.logits import COMPUTE_DTYPES, Job
from flexref.check.logits_compare import LogitsDifference, compare_logits
from flexref.check.logits_file import ArraysFile
from flexref.check.logits_reference import write_reference
from flexref.storage.weightfile import open_weight_file

ROWS = [[2, 13, 31, 64, 9, 60, 4, 17, 33, 8, 25, 41], [5, 6], [40]]


def run_recipe(folder: Path, change: str = "") -> subprocess.CompletedProcess[str]:
    """The commands of README in a folder that has `opt-125m`; `change` is a line put before the last of the Python."""
    readme = Path(flexref.check.__file__).with_name("README.md").read_text(encoding="utf-8")
    (recipe,) = [body for body in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "transformers" in body]
    assert len(recipe.splitlines()) <= 10
    recipe = recipe.replace("np.savez", f"{change}\nnp.savez")
    folders = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": folders, "PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = ["bash", "-e", "-c", recipe]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_recipe_finds_transformers_right(tmp_path: Path) -> None:
    new_model(SMALL_125M).save_pretrained(tmp_path / "opt-125m")
    done = run_recipe(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "within the bounds of float32"


def test_the_recipe_finds_an_engine_wrong_that_is(tmp_path: Path) -> None:
    new_model(SMALL_125M).save_pretrained(tmp_path / "opt-125m")
    done = run_recipe(tmp_path, "logits = torch.tensor(logits.numpy() * 1.001)")
    assert done.returncode == 1
    assert "flexref: the logits are not those of opt-125m: row 0, position " in done.stderr


def beside(folder: Path, dtype: str, attention: str, layers: int | None = None) -> LogitsDifference:
    """`transformers`' logits of every row in a type, beside the reference; of some of the layers only, maybe."""
    model = OPTForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    if layers is not None:
        del model.model.decoder.layers[layers:]
    with torch.no_grad():
        found = {f"logits_{row}": model(torch.tensor([ids])).logits[0].float().numpy() for row, ids in enumerate(ROWS)}
    np.savez(folder / "theirs.npz", **found)
    with ArraysFile(folder / "ref.npz") as reference, ArraysFile(folder / "theirs.npz") as theirs:
        return compare_logits(reference, theirs, dtype)


@pytest.mark.parametrize("variant", [SMALL_125M, SMALL_350M, SMALL_GALACTICA], ids=lambda variant: variant.name)
def test_the_oracle_is_within_the_bounds_of_the_type_that_it_stores(variant: Variant, tmp_path: Path) -> None:
    new_model(variant).save_pretrained(tmp_path)
    job = Job(open_weight_file(weight_file(tmp_path)), ROWS, [0] * len(ROWS))
    write_reference(tmp_path / "ref.npz", job, [None] * len(ROWS))
    for attention in ("sdpa", "eager"):
        for dtype in COMPUTE_DTYPES:
            found = beside(tmp_path, dtype, attention)
            worst = found.worst.worst
            assert worst is not None
            assert found.within, found.fault
            assert (1e-4 if dtype == "float32" else 0.02) < worst.share < 0.6
            assert all(row.first_divergence is None or row.first_divergence.tie for row in found.rows)
    assert not beside(tmp_path, "bfloat16", "sdpa", layers=1).within
