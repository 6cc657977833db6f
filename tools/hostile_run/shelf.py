"""What cases start from, made once per run: tiny models in every form, tokenizers, inputs of every kind, a machine."""

import json
import os
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from flexref.architecture.opt import source_names
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import file_stages
from flexref.backend.registry import create
from flexref.check.models import random_tensor, random_tensors
from flexref.machine.names import cache_folder
from flexref.profile.kept_machines import measured_machine
from flexref.profile.measure import measure_machine
from flexref.profile.sizes import Sizes
from flexref.storage.writer import WeightFileWriter

SPEC = ModelSpec("tiny", 290, 48, 32, 32, 2, 4, 64)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("Ġ", "a"))
SENTENCE = "One day a little girl went out and saw the king. "

TOUCH = b"touch ../called"
CALL = b"cposix\nsystem\n(X" + struct.pack("<I", len(TOUCH)) + TOUCH + b"tR"
"""Instructions of pickle that must not be followed: whoever does leaves a file beside the folders of the case."""

Tensors = Mapping[str, npt.NDArray[np.float32]]

FAILING_CALLS = Path(__file__).parents[2] / "tests" / "storage" / "failing_calls.c"


@dataclass(frozen=True, slots=True)
class Shelf:
    """A folder of things that every case may read and none may change."""

    folder: Path
    failing_calls: Path | None
    """A library that makes calls of the operating system fail; None without a compiler."""
    small_disks: bool
    """Whether a disk of some kilobytes can be had here."""

    def path(self, name: str) -> str:
        """Something of the shelf by its name."""
        return str(self.folder / name)

    def files(self) -> list[Path]:
        """All of it."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]


WEIGHT_FILES = ("dense.h5", "half.h5", "int4.h5", "int8.h5", "words.h5")
FOLDERS = ("single", "sharded", "torch", "torch-sharded", "vocabulary")


def fill_shelf(folder: Path) -> Shelf:
    """Make everything in `folder`."""
    for name, scheme, dtype, tokenizer in (
        ("dense.h5", "none", "float32", b""),
        ("half.h5", "none", "float16", b""),
        ("int4.h5", "int4", "float16", b""),
        ("int8.h5", "int8", "float32", b""),
        ("words.h5", "none", "float32", json.dumps(tokenizer_document()).encode()),
    ):
        _write_weight_file(folder / name, scheme, dtype, tokenizer)
    for name in FOLDERS:
        _write_folder(folder / name, name)
    for name, content in inputs().items():
        (folder / name).write_bytes(content)
    os.environ["FLEXREF_CACHE_DIR"] = str(folder / "cache")
    port = create("numpy")
    measured_machine(
        port, folder, measure=lambda backend, disk, **_: measure_machine(backend, disk, sizes=Sizes.tiny())
    )
    port.close()
    (kept,) = cache_folder().glob("*.json")
    shutil.copy(kept, folder / "machine.json")
    return Shelf(folder, _failing_calls(folder), _has_small_disks(folder))


def inputs() -> dict[str, bytes]:
    """Inputs of every kind, by name, each as it should be."""
    ids = [[5, 9, 100, 23], [2], [7, 7, 8, 250, 17, 3]]
    shares = {"device": 0.5, "host": 0.25, "disk": 0.25}
    policy = {"weights": shares, "cache": shares, "activations": shares, "rows_per_group": 2, "groups_per_block": 2}
    questions: list[dict[str, Any]] = [
        {"question": "What is it?", "choices": ["a dog", "the king"], "answer": 1},
        {"question": "Who went out?", "choices": ["a girl", "an ant"], "answer": "A"},
    ]
    endings = [{"ctx": "One day", "endings": ["a girl went out", "the the"], "label": 0}]

    def lines(values: list[Any]) -> bytes:
        return b"".join(json.dumps(value).encode() + b"\n" for value in values)

    return {
        "prompts.txt": b"One day\nthe king\n\na girl\n",
        "prompts.jsonl": lines([{"prompt": "One day", "id": "a"}, {"prompt": "the king", "id": 2}]),
        "ids.jsonl": lines([{"prompt": row, "id": number} for number, row in enumerate(ids)]),
        "tokens.txt": " ".join(str(5 + 7 * number % 280) for number in range(90)).encode(),
        "tokens.json": json.dumps([5 + 11 * number % 280 for number in range(90)]).encode(),
        "letters.jsonl": lines(questions),
        "endings.jsonl": lines(endings),
        "words.jsonl": lines([{"text": SENTENCE.strip()}]),
        "text.txt": (SENTENCE * 6).encode(),
        "long.txt": (SENTENCE * 1000).encode(),
        "policy.json": json.dumps(policy).encode(),
    }


def tokenizer_document() -> dict[str, Any]:
    """A byte-level tokenizer of 290 tokens at most, as a `tokenizer.json`."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, list(MERGES)))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("</s> $A", "</s> $A $B:1", [("</s>", 2)])
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    del document["model"]["ignore_merges"]  # published files are older than it
    return document


def config_document() -> dict[str, Any]:
    """The `config.json` of the tiny model."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "torch_dtype": "float32",
        "vocab_size": SPEC.vocabulary,
        "max_position_embeddings": SPEC.positions,
        "hidden_size": SPEC.width,
        "word_embed_proj_dim": SPEC.embed_width,
        "num_hidden_layers": SPEC.layers,
        "num_attention_heads": SPEC.heads,
        "ffn_dim": SPEC.ffn_width,
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "activation_function": "relu",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }


def folder_tensors() -> Tensors:
    """Every tensor of the tiny model by its name in a Hugging Face folder."""
    found = {}
    for stage in file_stages(SPEC, tile_rows=SPEC.vocabulary):
        for tensor in stage.tensors:
            names = source_names(tensor)
            parts = np.split(random_tensor(tensor, 0), len(names))
            found.update({f"model.{name}": part for name, part in zip(names, parts, strict=True)})
    return found


def _write_weight_file(path: Path, scheme: str, dtype: str, tokenizer: bytes) -> None:
    with WeightFileWriter(path, SPEC, scheme, None if scheme == "none" else 16, dtype, tokenizer) as writer:
        for name, values in random_tensors(writer.tensors, 0).items():
            writer.write(name, values)


def _write_folder(folder: Path, what: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_document()))
    tensors = folder_tensors()
    names, suffix = sorted(tensors), "bin" if what.startswith("torch") else "safetensors"
    stem = "pytorch_model" if suffix == "bin" else "model"
    parts = {f"{stem}.{suffix}": names}
    if "sharded" in what:
        parts = {f"{stem}-0000{at + 1}-of-00002.{suffix}": names[at::2] for at in (0, 1)}
        places = {name: file for file, inside in parts.items() for name in inside}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for file, inside in parts.items():
        some = {name: tensors[name] for name in inside}
        if suffix == "bin":
            write_torch(folder / file, some)
        else:
            save_file(some, folder / file, {"format": "pt"})
    document = tokenizer_document()
    if what == "vocabulary":
        (folder / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
        tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "add_bos_token": True}))
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    else:
        (folder / "tokenizer.json").write_text(json.dumps(document))


def write_torch(path: Path, tensors: Tensors, injected: bytes = b"") -> None:
    """A checkpoint as PyTorch writes it, made without PyTorch; `injected` are instructions of pickle before its end."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle_of(tensors, injected))
        archive.writestr("archive/byteorder", b"little")
        for number, values in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", values.tobytes())
        archive.writestr("archive/version", b"3\n")


def pickle_of(tensors: Tensors, injected: bytes = b"") -> bytes:
    """The pickle in such a file: a dictionary of tensors, each a call with a storage by its number."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    parts = [b"\x80\x02}("]
    for number, (name, values) in enumerate(tensors.items()):
        strides = tuple(stride // values.itemsize for stride in values.strides)
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(number)) + text("cpu")
        storage += b"J" + struct.pack("<i", values.size) + b"tQ"
        call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(values.shape) + numbers(strides)
        parts.append(text(name) + call + b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join([*parts, b"u", injected, b"."])


def _failing_calls(folder: Path) -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "failing_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, FAILING_CALLS, "-ldl"], check=True)
    return library


def _has_small_disks(folder: Path) -> bool:
    place = folder / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=False, capture_output=True)
        if not done.returncode:
            subprocess.run(["umount", str(place)], check=True)
        return not done.returncode
    except OSError:
        return False
    finally:
        place.rmdir()
