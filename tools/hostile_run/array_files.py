"""Cases of files of arrays: another engine's logits, or a reference run, that are damaged or made to harm."""

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hostile_run.mutations import changed_bytes, odd_file, odd_value
from hostile_run.shelf import CALL, Shelf
from hostile_run.trial import IN, Trial

HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 290), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 290), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 290), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 290), }",
    "{'descr': '<c16', 'fortran_order': False, 'shape': (), }",
    "__import__('posix').system('touch ../called')",
    "(" * 3000,
    "{" * 200_000,
)


def trial(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """Two files of arrays of which one is wrong, and the command that compares them."""
    reference, theirs = shelf.path("reference.npz"), shelf.path("theirs.npz")
    bad = folder / IN / "bad.npz"
    spoils_reference = draw.random() < 0.4
    if draw.random() < 0.06:
        odd_file(draw, bad)
    else:
        _spoil(draw, Path(reference if spoils_reference else theirs), bad)
    files = [str(bad), theirs] if spoils_reference else [reference, str(bad)]
    return Trial([["compare-logits", *files, *draw.choice(([], ["--json"], ["--dtype", "bfloat16"]))]], folder)


def _spoil(draw: Random, source: Path, bad: Path) -> None:
    """Write `source` with something wrong in it."""
    if draw.random() < 0.35:
        bad.write_bytes(changed_bytes(draw, source.read_bytes()))
        return
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(sorted(members))
    how = draw.randrange(8)
    if how == 0:
        members.pop(name)
    elif how == 1:
        members[name] = changed_bytes(draw, members[name])
    elif how == 2:
        header = draw.choice(HEADERS).encode() + b"\n"
        members[name] = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + members[name][128:]
    elif how == 3:
        members[name] = _saved(np.array([{"a": 1}], object)) if draw.random() < 0.5 else CALL + b"."
    elif how == 4:
        members[name] = _saved(np.zeros((200, 100_000), np.float32))
    elif how == 5:
        members[name] = _odd_values(draw, members[name])
    elif how == 6:
        members[draw.choice(("../x.npy", "logits_99.npy", "logits_-1.npy", "about.npy", "ids_0.npy"))] = members[name]
    else:
        members[name] = _saved(np.array(json.dumps(odd_value(draw))))
    packed = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(bad, "w", packed) as archive:
        warnings.simplefilter("ignore")  # two members may have one name
        for member, content in members.items():
            archive.writestr(member, content)
        if draw.random() < 0.1:
            archive.writestr(name, members.get(name, b""))


def _odd_values(draw: Random, member: bytes) -> bytes:
    """An array of the same shape and type with values that are none, or of another type."""
    try:
        values = np.load(io.BytesIO(member))
    except (ValueError, pickle.UnpicklingError):
        return member
    if values.dtype.kind != "f" or not values.size:
        return _saved(values.astype("<i2") if values.dtype.kind == "i" else values)
    changed: Any = values.copy()
    changed.flat[draw.randrange(changed.size)] = draw.choice((np.nan, np.inf, -np.inf, 1e30, -1e-30))
    with np.errstate(all="ignore"):
        return _saved(changed.astype(draw.choice((changed.dtype, np.float16, np.float64, np.int8))))


def _saved(values: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, values)
    return held.getvalue()


def write_theirs(reference: Path, theirs: Path) -> None:
    """What another engine would have written: the logits of a reference run in float32."""
    with np.load(reference) as arrays:
        some = {name: arrays[name].astype(np.float32) for name in arrays.files if name.startswith("logits_")}
    np.savez(theirs, **some)  # type: ignore[arg-type]
