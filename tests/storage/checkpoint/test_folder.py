"""Hugging Face folders that are none, or are incomplete, damaged or hostile: each is one clear line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.errors import CheckpointError, FlexrefError, StorageError, WeightFileError
from flexref.storage.convert import convert


def edited_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def edited_index(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"].update(changes)
        path.write_text(json.dumps(index))

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def holding(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


SHARD = "part-1.model.safetensors"
INDEX = "model.safetensors.index.json"

BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], type[FlexrefError], str]] = {
    "no OPT": (edited_config(model_type="gpt2"), CheckpointError, "has model_type 'gpt2', needed 'opt'"),
    "no configuration": (without("config.json"), CheckpointError, "is no Hugging Face model: it has no config.json"),
    "no JSON": (holding("config.json", b"{"), CheckpointError, "config.json is not JSON"),
    "deep JSON": (holding("config.json", b"[" * 100_000), CheckpointError, "config.json is not JSON"),
    "no text": (holding("config.json", b"\xff\xfe\xfd"), CheckpointError, "config.json is not JSON"),
    "a long number": (
        holding("config.json", b'{"a": ' + b"9" * 9999 + b"}"),
        CheckpointError,
        "config.json is not JSON",
    ),
    "no object": (holding("config.json", b"[]"), CheckpointError, "must hold a JSON object, found list"),
    "no weights": (without(INDEX), CheckpointError, "has no weights: needed model.safetensors .*; found none"),
    "foreign weights": (
        lambda folder: (folder / INDEX).rename(folder / "flax_model.msgpack"),
        CheckpointError,
        "has no weights: .* found only flax_model.msgpack",
    ),
    "a missing shard": (without(SHARD), CheckpointError, f"lacks 1 of the 3 shards that {INDEX} names, .* '{SHARD}'"),
    "an index without map": (holding(INDEX, b"{}"), CheckpointError, "must map names of tensors to files"),
    "an index of numbers": (holding(INDEX, b'{"weight_map": {"a": 1}}'), CheckpointError, "must map names of tensors"),
    "an index that leads out": (
        edited_index(**{"model.decoder.layers.0.fc1.bias": "../../etc/passwd"}),
        CheckpointError,
        r"names the shard '\.\./\.\./etc/passwd', which is not a file of its folder",
    ),
    "an index that leads up": (
        edited_index(more=".."),
        CheckpointError,
        r"names the shard '\.\.', which is not a file",
    ),
    "a tensor in no shard": (
        edited_index(more=SHARD),
        CheckpointError,
        f"{SHARD} lacks the tensor 'more' that the index names",
    ),
    "a damaged shard": (holding(SHARD, b"x" * 5000), CheckpointError, f"{SHARD} is no valid safetensors file"),
    "an empty shard": (holding(SHARD, b""), CheckpointError, f"{SHARD} is no valid safetensors file"),
    "another width": (
        edited_config(hidden_size=24),
        CheckpointError,
        r"tensor model.decoder.\S+ has shape \(8, 12\), config.json asks for \(8, 24\)",
    ),
    "another vocabulary": (
        edited_config(vocab_size=151),
        CheckpointError,
        r"embed_tokens.weight has shape \(150, 10\), config.json asks for \(151, 10\)",
    ),
    "more layers": (
        edited_config(num_hidden_layers=2),
        CheckpointError,
        "lacks 16 tensors, the first is decoder.layers.1",
    ),
    "no tied head": (
        edited_config(tie_word_embeddings=False),
        CheckpointError,
        "lacks 1 tensor, the first is lm_head.weight",
    ),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_bad_folder_is_one_clear_line(kit, tied_spec: ModelSpec, what: str) -> None:
    change, error, said = BAD_FOLDERS[what]
    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    folder = kit.write_folder(tied_spec, tensors, kit.folder(), "sharded safetensors")
    change(folder)
    with pytest.raises(error, match=said) as raised:
        convert(folder, folder / "model.h5")
    assert "\n" not in str(raised.value)
    assert not [path for path in folder.iterdir() if ".h5" in path.name]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_is_none_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((StorageError, WeightFileError), match=r"no such directory: |is not a flexref weight file"):
        convert(tmp_path / name, tmp_path / "model.h5")
