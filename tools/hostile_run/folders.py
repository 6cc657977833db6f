"""Cases of checkpoint folders: configurations, safetensors, pickles, indexes, tokenizers, and what is no file."""

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from hostile_run.mutations import ODD_NUMBERS, ODD_TEXTS, changed_bytes, changed_value, json_bytes, odd_file
from hostile_run.shelf import CALL, FOLDERS, Shelf, folder_tensors, pickle_of, tokenizer_document, write_torch
from hostile_run.trial import IN, Trial
from hostile_run.weight_files import DEVICE

DEEP = "sequences in one another"
"""Stands for a part of a tokenizer that no encoder of Python's would write."""

INJECTED = (
    CALL + b"0",
    CALL.replace(b"posix", b"os") + b"0",
    b"cbuiltins\neval\n(X\x01\x00\x00\x001tR0",
    b"(X\x01\x00\x00\x00aiposix\nsystem\n0",
    b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x05\x00\x00\x00clear" + b"tR0",
    b"\x8c\x05posix\x8c\x06system\x93)R0",
    b"ctorch.hub\nload\n(X\x01\x00\x00\x00atR0",
    b"cflexref.files\nwrite_bytes\n(X\x01\x00\x00\x00aC\x01atR0",
    b"\x82\x01",
    b"(" * 1_000_000,
    b"}" * 8_000_000,
    b"]" + b"]a" * 300_000,
    b"\x88\x85" + b"\x85" * 100_000 + b"0",
    b"X\xff\xff\xff\x7f",
    b"\x8e" + struct.pack("<Q", 1 << 62),
    b"\x95" + struct.pack("<Q", 1 << 63),
    b"q\x00h\x00h\x01",
    b"I" + b"9" * 100_000 + b"\n0",
    b"\x8b" + struct.pack("<i", 1 << 30),
    b"2" * 1_000_000,
)
"""Instructions put before a pickle's end: calls that must not happen, and work or memory without bound."""


def checkpoint(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A Hugging Face folder with something wrong in it, and `convert`."""
    source, what = _copy(draw, shelf, folder)
    for _ in range(draw.choice((1, 1, 1, 2))):
        _spoil(draw, source, what)
    quantize = draw.choice((["none"], ["int4", "--group-size", "16"], ["int8", "--dtype", "float32"]))
    commands = [["convert", str(source), "out.h5", "--quantize", *quantize]]
    if draw.random() < 0.5:
        generate = ["generate", "--json", "--max-new-tokens", "3", "--model", "out.h5", "--input"]
        commands += [["verify", "out.h5"], [*generate, shelf.path("ids.jsonl"), *DEVICE]]
    return Trial(commands, folder, outputs=frozenset({"out.h5"}))


def tokenizer(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A Hugging Face folder whose tokenizer is odd, `convert`, and text through what was taken."""
    source, _ = _copy(draw, shelf, folder)
    _spoil_tokenizer(draw, source)
    texts = draw.choice((["One day"], ["\0é🙂\ud7ff", "a" * 300], ["</s><pad>"], ["the " * 3, " "], ["\x1b[2J\u202e"]))
    prompts = [part for text in texts for part in ("--prompt", text.replace("\0", ""))]
    generate = ["generate", "--model", "out.h5", *prompts, "--max-new-tokens", "3", *DEVICE]
    stop = draw.choice(([], ["--stop", "e"], ["--json"]))
    commands = [["convert", str(source), "out.h5", "--quantize", "none"], [*generate, *stop]]
    if draw.random() < 0.3:
        commands.append(["eval", "--model", "out.h5", "--text", shelf.path("text.txt"), *DEVICE])
    return Trial(commands, folder, outputs=frozenset({"out.h5"}))


def _copy(draw: Random, shelf: Shelf, folder: Path) -> tuple[Path, str]:
    what = draw.choice(FOLDERS)
    source = folder / IN / "model"
    shutil.copytree(shelf.folder / what, source)
    return source, what


def _spoil(draw: Random, source: Path, what: str) -> None:
    """Make one thing in the folder wrong."""
    suffixes = {".safetensors", ".bin"}
    weights = sorted(path for path in source.iterdir() if path.suffix in suffixes and is_plain(path))
    indexes = sorted(source.glob("*.index.json"))
    how = draw.randrange(10)
    if how <= 2:
        path = source / "config.json"
        _put(path, _changed_json(draw, path))
    elif how == 3:
        odd_file(draw, draw.choice(sorted(path for path in source.iterdir() if not path.is_dir())))
    elif how == 4 and indexes and is_plain(indexes[0]):
        indexes[0].write_bytes(_index(draw, indexes[0]))
    elif how <= 6 and weights:
        path = draw.choice(weights)
        path.write_bytes(changed_bytes(draw, path.read_bytes()))
    elif how == 7:
        _spoil_tokenizer(draw, source)
    elif what.startswith("torch"):
        _spoil_torch(draw, draw.choice(weights) if weights else source / "pytorch_model.bin")
    elif weights:
        _spoil_safetensors(draw, weights[0])


def is_plain(path: Path) -> bool:
    """Whether a regular file lies there, and no link to one."""
    return path.is_file() and not path.is_symlink()


def _clear(path: Path) -> None:
    """Make room for a file: what lies there may be a folder, or a pipe that nobody would read."""
    if not is_plain(path) and os.path.lexists(path):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _put(path: Path, content: bytes) -> None:
    """Write a file in place of whatever lies there."""
    _clear(path)
    path.write_bytes(content)


def _changed_json(draw: Random, path: Path) -> bytes:
    """The document with something wrong in it; one that was spoilt before, or is no file, becomes another."""
    try:
        return json_bytes(draw, json.loads(path.read_bytes()) if is_plain(path) else {})
    except (ValueError, RecursionError):
        return b"{}"


def _index(draw: Random, path: Path) -> bytes:
    try:
        index = json.loads(path.read_bytes())
        names = sorted(index["weight_map"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return b"[]"
    if draw.random() < 0.5:
        return json_bytes(draw, index)
    places = index["weight_map"]
    for name in draw.sample(names, min(len(names), draw.choice((1, 3)))):
        wrong = ("../../../etc/passwd", "/dev/zero", "config.json", "nowhere.bin", "", ".", "a\0b", 3, None, ["x"])
        places[name] = draw.choice(wrong)
    return json.dumps(index).encode()


def _spoil_safetensors(draw: Random, path: Path) -> None:
    """Change the header of a safetensors file, and mostly give it the length that fits."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:  # it was spoilt before
        header = {}
    entries = [header[name] for name in sorted(header) if isinstance(header[name], dict)]  # it may be spoilt already
    if draw.random() < 0.4 and entries:
        entry = draw.choice(entries)
        entry[draw.choice(("dtype", "shape", "data_offsets"))] = draw.choice(
            ("F64", "F8_E4M3", "I64", [1 << 62, 4], [-1], [], [0, 0], [0, 1 << 63], [8, 4], "x", None)
        )
        new = json.dumps(header).encode()
    else:
        new = json_bytes(draw, header)
    claimed = len(new) if draw.random() < 0.85 else draw.choice((0, 1, len(new) + 1, 1 << 40, (1 << 64) - 1))
    path.write_bytes(struct.pack("<Q", claimed) + new + data[8 + length :])


def _spoil_torch(draw: Random, path: Path) -> None:
    """Write a PyTorch file that is hostile, or wrong in its zip or its pickle."""
    tensors = dict(folder_tensors())
    how = draw.randrange(7)
    _clear(path)
    if how <= 2:
        write_torch(path, tensors, draw.choice(INJECTED))
    elif how == 3:
        for name in draw.sample(sorted(tensors), 2):
            tensors.pop(name)
        write_torch(path, tensors)
    else:
        pickled = pickle_of(tensors)
        with zipfile.ZipFile(
            path, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        ) as archive:
            archive.writestr("archive/data.pkl", changed_bytes(draw, pickled) if how <= 5 else pickled)
            for number, values in enumerate(tensors.values()):
                name = f"archive/data/{draw.choice(('../', '')) if how == 6 else ''}{number}"
                content = values.tobytes() if draw.random() < 0.97 else changed_bytes(draw, values.tobytes())
                archive.writestr(name, content)
        if how == 6:
            path.write_bytes(changed_bytes(draw, path.read_bytes()))


def _spoil_tokenizer(draw: Random, source: Path) -> None:
    """Change what the folder keeps of a tokenizer."""
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    there = [source / name for name in names if is_plain(source / name)]
    how = draw.randrange(8)
    if how == 0 or not there:
        odd_file(draw, source / draw.choice((*names, "added_tokens.json")))
    elif how <= 3:
        path = draw.choice(there)
        if path.suffix == ".json":
            path.write_bytes(_changed_json(draw, path))
        else:
            path.write_bytes(changed_bytes(draw, path.read_bytes()))
    elif how == 4:
        odd = {draw.choice(ODD_TEXTS): draw.choice(ODD_NUMBERS), "added_tokens_decoder": {"-1": {"content": "x"}}}
        path = source / draw.choice(("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"))
        _put(path, json.dumps(changed_value(draw, odd)).encode())
    else:
        depth = draw.choice((3, 200, 900, 50_000))
        deep = '{"type": "Sequence", "normalizers": [' * depth + '{"type": "NFC"}' + "]}" * depth
        text = json.dumps(_odd_tokenizer(draw)).replace(json.dumps(DEEP), deep)
        _put(source / "tokenizer.json", text.encode())


def _odd_tokenizer(draw: Random) -> dict[str, Any]:
    """A tokenizer that the library takes and that multiplies, or looks for what takes for ever."""
    document = tokenizer_document()
    pattern = draw.choice(("(a+)+$", "(?:a|aa)+b", "(x*)*y", "[", "(?R)", "a{1000000}", "(?<!a*)b", "\\p{L}+", ""))
    replace = {"type": "Replace", "pattern": draw.choice(({"String": "t"}, {"Regex": pattern})), "content": "t" * 1000}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    normalizers = (
        replace,
        {"type": "Sequence", "normalizers": [replace] * 3},
        {"type": "Prepend", "prepend": "x" * draw.choice((10, 10_000_000))},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}] * draw.choice((2, 20_000))},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "BertNormalizer"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    )
    part = draw.randrange(6)
    if part <= 2:
        document["normalizer"] = draw.choice((*normalizers, DEEP))
    elif part == 3:
        document["pre_tokenizer"] = draw.choice((split, {"type": "Sequence", "pretokenizers": [split] * 5}, None))
    elif part == 4:
        document["decoder"] = draw.choice((replace, {"type": "Sequence", "decoders": [replace] * 3}, None))
    else:
        document["model"] = draw.choice(
            (
                {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
                {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7},
                {**document["model"], "dropout": draw.choice((0.5, 1.0, -1.0))},
                {**document["model"], "vocab": {"a": draw.choice((0, 1 << 32, 1 << 31, -1))}, "merges": []},
                {**document["model"], "merges": [["t", "h"]] * 100_000},
            )
        )
    return document
