"""Cases of damaged weight files: bytes, lengths, pieces of others, HDF5 metadata, trailers."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import h5py

from flexref.storage.trailer import TRAILER_BYTES, seal
from flexref.storage.weightfile import open_weight_file
from hostile_run.mutations import ODD_TEXTS, changed_bytes, odd_value
from hostile_run.shelf import WEIGHT_FILES, Shelf
from hostile_run.trial import IN, Trial

SPREAD = ("--percent", "40", "30", "30", "30", "30", "30", "--device-mem-gib", "1", "--host-mem-gib", "1")
DEVICE = ("--percent", "100", "0", "100", "0", "100", "0", "--device-mem-gib", "1", "--host-mem-gib", "1")

GENERATE = ("generate", "--json", "--max-new-tokens", "6", "--ignore-eos")


def reference(shelf: Shelf, name: str) -> list[list[int]]:
    """The tokens of the shelf's prompts by the weight file `name`, all on the device, as `expectations` found them."""
    found: list[list[int]] = json.loads((shelf.folder / "expected.json").read_text())[name]
    return found


def trial(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A weight file with some damage, and a command that reads it."""
    name = draw.choice(WEIGHT_FILES)
    bad = folder / IN / "bad.h5"
    resealed = _damage(draw, shelf, name, bad)
    commands = [_command(draw, shelf, str(bad))]
    if draw.random() < 0.2:
        commands = [["verify", str(bad)], *commands]
    made = Trial(commands, folder, outputs=frozenset({"out.h5", "out.npz", "plan.json"}))
    if commands[-1][0] == "generate" and not resealed:
        made.expected = reference(shelf, name)
    return made


def _command(draw: Random, shelf: Shelf, bad: str) -> list[str]:
    other = shelf.path(draw.choice(WEIGHT_FILES))
    generate = [*GENERATE, "--model", bad, "--input", shelf.path("ids.jsonl")]
    tokens = ["--tokens", shelf.path("tokens.txt")]
    return draw.choice(
        (
            ["inspect", bad, *draw.choice(([], ["--json"]))],
            ["verify", bad],
            [*generate, *SPREAD],
            [*generate, *DEVICE],
            ["eval", "--model", bad, *tokens, *DEVICE],
            ["plan", "--model", bad, "--machine", shelf.path("machine.json"), "--rows", "4", "-o", "plan.json"],
            ["convert", bad, "out.h5", "--quantize", draw.choice(("int4", "int8", "none")), "--group-size", "16"],
            ["check", "--backend", "numpy", "--model", bad, "--no-contract", "--max-new-tokens", "2", *DEVICE],
            ["logits", "--model", bad, "--input", shelf.path("ids.jsonl"), "-o", "out.npz", "--dtype", "float32"],
            ["compare-models", *draw.sample([bad, other], 2), *tokens, *DEVICE],
        )
    )


def _damage(draw: Random, shelf: Shelf, name: str, bad: Path) -> bool:
    """Write the damaged file; whether its checksums were made to fit again."""
    data = (shelf.folder / name).read_bytes()
    how = draw.choice(("bytes", "bytes", "metadata bytes", "trailer", "splice", "edit", "edit", "resealed", "swap"))
    extents = [part.extent for part in open_weight_file(shelf.folder / name).parts]
    metadata_bytes = extents[0].offset
    if how == "bytes":
        data = changed_bytes(draw, data)
    elif how in ("metadata bytes", "resealed"):
        data = _changed_inside(draw, data, 0, metadata_bytes)
    elif how == "trailer":
        data = _changed_inside(draw, data, len(data) - TRAILER_BYTES, len(data))
    elif how == "splice":
        other = (shelf.folder / draw.choice(WEIGHT_FILES)).read_bytes()
        cut = draw.choice((metadata_bytes, draw.randrange(len(data)), len(data) - TRAILER_BYTES))
        data = data[:cut] + other[min(cut, len(other)) :]
    elif how == "swap":
        data = _swapped(data, *draw.sample([(extent.offset, extent.nbytes) for extent in extents], 2))
    bad.write_bytes(data)
    if how == "edit":
        _edit(draw, bad)
    reseals = how == "resealed" or (how == "edit" and draw.random() < 0.7)
    if reseals:
        descriptor = os.open(bad, os.O_RDWR)
        seal(descriptor, draw.choice((metadata_bytes, metadata_bytes, metadata_bytes, 0, 4096, 1 << 40)))
        os.close(descriptor)
    return reseals


def _changed_inside(draw: Random, data: bytes, first: int, last: int) -> bytes:
    content = bytearray(data)
    used = [place for place in range(first, last) if content[place]] or [first]
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.choice(used)
        content[place] = draw.choice((draw.randrange(256), content[place] ^ 1 << draw.randrange(8), 255))
    return bytes(content)


def _swapped(data: bytes, one: tuple[int, int], other: tuple[int, int]) -> bytes:
    content, count = bytearray(data), min(one[1], other[1])
    a, b = slice(one[0], one[0] + count), slice(other[0], other[0] + count)
    content[a], content[b] = content[b], content[a]
    return bytes(content)


def _edit(draw: Random, path: Path) -> None:
    """Change the file as another program would, by the HDF5 library."""
    with h5py.File(path, "r+") as file:
        named: list[Any] = [file]
        file.visititems(lambda _, found: named.append(found))
        for _ in range(draw.choice((1, 1, 2))):
            found = draw.choice(named)
            try:
                holder = found if isinstance(found, h5py.Group) else found.parent
                _edit_once(draw, file, found, holder)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, UnicodeError, OverflowError):
                continue  # what HDF5 itself refuses to write


def _edit_once(draw: Random, file: h5py.File, found: Any, holder: h5py.Group) -> None:
    how = draw.randrange(8)
    keys = list(found.attrs)
    if how <= 2 and keys:
        found.attrs[draw.choice(keys)] = odd_value(draw)
    elif how == 3:
        found.attrs[draw.choice(ODD_TEXTS) or "more"] = odd_value(draw)
    elif how == 4 and keys:
        del found.attrs[draw.choice(keys)]
    elif how == 5 and found.name != "/":
        name = found.name
        del file[name]
        links = (h5py.SoftLink(name), h5py.ExternalLink("/dev/zero", "/"), h5py.ExternalLink(file.filename, name))
        what = draw.randrange(5)
        if what < 3:
            file[name] = links[what]
        elif what == 3:
            file.create_dataset(name, shape=(1 << 30, 1 << 20), dtype="f4", chunks=(1, 1024))
    elif how == 6:
        holder[draw.choice(ODD_TEXTS) or "again"] = draw.choice((found, h5py.SoftLink("/nowhere"), file))
    elif how == 7 and found.name != "/":
        file.move(found.name, draw.choice(("moved", "/a/b", f"{found.name}2")))


def expectations(shelf: Shelf) -> dict[str, list[str]]:
    """The commands whose tokens `reference` returns, by weight file."""
    job = [*GENERATE, "--input", shelf.path("ids.jsonl"), *DEVICE, "--model"]
    return {"demo": [*job, "demo"], **{name: [*job, shelf.path(name)] for name in WEIGHT_FILES}}
