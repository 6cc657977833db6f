"""A Hugging Face folder of an OPT model: its configuration and where each weight lies; it reads no weight.

Weights may stand in `model.safetensors`, in `pytorch_model.bin`, or in shards of either kind with an index; their names
may begin with `model.decoder.` or with `decoder.`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexref.architecture.opt import PREFIXES, from_config
from flexref.architecture.spec import ModelSpec
from flexref.errors import CheckpointError, StorageError, how_many
from flexref.files import read_object
from flexref.storage.checkpoint.safetensors_file import list_safetensors
from flexref.storage.checkpoint.source import SourceTensor
from flexref.storage.checkpoint.torch_file import list_torch

Lister = Callable[[Path], Iterator[SourceTensor]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An OPT checkpoint: its model as configured, and its tensors by the name that they have there."""

    folder: Path
    spec: ModelSpec
    tensors: Mapping[str, SourceTensor]

    def find(self, name: str) -> SourceTensor | None:
        """The tensor of `name`, such as `decoder.layers.0.fc1.weight`, in either style; None if there is none."""
        return next((self.tensors[prefix + name] for prefix in PREFIXES if prefix + name in self.tensors), None)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in `folder`; `CheckpointError` or `StorageError` says in one line why it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a directory" if folder.exists() else f"no such directory: {folder}")
    config = _read_json(folder / "config.json", f"{folder} is no Hugging Face model")
    return Checkpoint(folder, from_config(config, _model_name(folder)), _tensors(folder))


def _model_name(folder: Path) -> str:
    """The folder's own name, fit to be stored and shown."""
    return folder.resolve().name.encode("utf-8", "replace").decode("utf-8")[:200] or "model"


def _read_json(path: Path, complaint: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{complaint}: it has no {path.name}")
    return read_object(path, CheckpointError)


_FORMATS: tuple[tuple[str, Lister], ...] = (("model.safetensors", list_safetensors), ("pytorch_model.bin", list_torch))


def _tensors(folder: Path) -> dict[str, SourceTensor]:
    for name, lister in _FORMATS:
        if (folder / name).is_file():
            return {tensor.name: tensor for tensor in lister(folder / name)}
        if (folder / f"{name}.index.json").is_file():
            return _sharded(folder / f"{name}.index.json", lister)
    needed = ", ".join(f"{name} or {name}.index.json" for name, _ in _FORMATS)
    others = [
        path.name for path in folder.iterdir() if path.suffix in (".msgpack", ".h5", ".ot", ".gguf", ".pth", ".pt")
    ]
    found = f"found only {min(others)}" if others else "found none"
    raise CheckpointError(f"{folder} has no weights: needed {needed}; {found}")


def _sharded(index: Path, lister: Lister) -> dict[str, SourceTensor]:
    """The tensors of all shards, each from the shard that the index names for it."""
    places = _read_json(index, str(index)).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{index} must map names of tensors to files under weight_map")
    _check_shards(index, sorted(set(places.values())))
    tensors: dict[str, SourceTensor] = {}
    for shard in sorted(set(places.values())):
        tensors.update(
            (tensor.name, tensor) for tensor in lister(index.parent / shard) if places.get(tensor.name) == shard
        )
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise CheckpointError(
            f"{index.parent / places[lacking[0]]} lacks the tensor {lacking[0][:128]!r} that the index names"
        )
    return tensors


def _check_shards(index: Path, shards: Iterable[str]) -> None:
    shards = list(shards)
    for shard in shards:
        if shard != Path(shard).name or shard in ("", ".", ".."):
            raise CheckpointError(f"{index} names the shard {shard[:128]!r}, which is not a file of its folder")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of the {how_many(len(shards), 'shard')} that {index.name} names, "
            f"the first is {missing[0][:128]!r}"
        )
