"""From a folder to text, by the commands that README prints, on a folder like the hub's facebook/opt-125m."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracle_kit import torch
from oracle_kit.checkpoints import SMALL_125M, new_model
from tokenizers.pre_tokenizers import ByteLevel

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """`opt-125m` with random weights, under the names and in the form of the published folder."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    model = new_model(SMALL_125M.changed(vocabulary=len(letters)))
    folder = tmp_path / "opt-125m"
    model.half().config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    named = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    config = {**named, "add_bos_token": True, "errors": "replace", "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_commands_of_readme_lead_from_a_published_folder_to_text(published: Path) -> None:
    (block,) = [body for body in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "hf download" in body]
    (download,) = re.findall(r"hf download facebook/(\S+) (.*?) --local-dir (\S+)", block, re.DOTALL)
    assert (download[0], download[2]) == (published.name, published.name)
    wanted = set(download[1].replace("\\\n", " ").split())
    assert wanted == {path.name for path in published.iterdir()} - {"generation_config.json"}
    ours = "\n".join(line for line in block.splitlines() if line.startswith("flexref"))
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        ["bash", "-ec", ours], cwd=published.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "It was a fine morning, and" in done.stdout
    assert (published.parent / "opt-125m.h5").exists()
