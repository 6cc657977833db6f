"""Whatever a command reads is a regular file of bounded size: pipes and devices in its place are one line, at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from flexref.cli.main import main
main()
"""
"""A command that has 3 GiB of address space, so that one which reads a device without end does not take the machine."""

GENERATE = ("generate", "--model", "demo", "--prompt", "x")
READERS = {
    "input": ("generate", "--model", "demo", "--input", "{bad}"),
    "policy": (*GENERATE, "--policy", "{bad}"),
    "machine": ("plan", "--model", "125m", "--machine", "{bad}"),
    "text": ("eval", "--model", "demo", "--text", "{bad}"),
    "choices": ("eval", "--model", "demo", "--choices", "{bad}"),
    "calibrate": ("convert", "demo", "{folder}/out.h5", "--calibrate", "{bad}"),
    "tokenizer.json": ("convert", "{folder}/model", "{folder}/out.h5"),
    "vocab.json": ("convert", "{folder}/model", "{folder}/out.h5"),
    "tokenizer_config.json": ("convert", "{folder}/model", "{folder}/out.h5"),
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_one_line(
    tmp_path: Path, tiny_folder: Path, what: str, kind: str
) -> None:
    bad = tiny_folder / what if "." in what else tmp_path / "bad"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to("/dev/zero")
    arguments = [argument.format(bad=bad, folder=tmp_path) for argument in READERS[what]]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(bad) in done.stderr
    assert done.stderr.endswith("it is no regular file\n")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A folder that is a model's, but for what a test puts there."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    shape = {"vocab_size": 8, "hidden_size": 4, "ffn_dim": 4, "num_hidden_layers": 0, "num_attention_heads": 1}
    config = {
        "model_type": "opt",
        **shape,
        "num_hidden_layers": 1,
        "max_position_embeddings": 8,
        "word_embed_proj_dim": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"decoder.embed_tokens.weight": np.ones((8, 4), np.float32)}, folder / "model.safetensors")
    return folder
