"""HDF5 files whose trailer fits but that do not hold what their header asks for: each is refused and says why."""

import json
from collections.abc import Callable

import h5py
import numpy as np
import pytest

from flexref.errors import WeightFileError
from flexref.storage.weightfile import open_weight_file, verify


def replaced(name: str, make: Callable[[h5py.Group, str], object]) -> Callable[[h5py.File], None]:
    """Take the dataset `name` away and let `make` put something else there."""

    def change(file: h5py.File) -> None:
        del file[name]
        group, _, leaf = name.rpartition("/")
        found = make(file[group or "/"], leaf)
        if isinstance(found, h5py.Dataset):
            found.attrs["xxh3_64"] = np.uint64(0)

    return change


BIAS = "layers/000/ffn_up/bias"
"""The dataset that is tampered with: 20 values in float16."""

DENSE = np.zeros(20, np.float16)


def moved(file: h5py.File) -> None:
    file.move(BIAS, "layers/000/ffn_up/bios")


def swapped(file: h5py.File) -> None:
    """Two datasets of one shape and type trade places."""
    file.move("layers/000/ffn_up/bias", "aside")
    file.move("layers/001/ffn_up/bias", "layers/000/ffn_up/bias")
    file.move("aside", "layers/001/ffn_up/bias")


def layers_swapped(file: h5py.File) -> None:
    """Two whole stages trade places: each is one run of bytes, but not in file order."""
    file.move("layers/000", "aside")
    file.move("layers/001", "layers/000")
    file.move("aside", "layers/001")


def same_twice(file: h5py.File) -> None:
    del file["layers/001/ffn_up/bias"]
    file["layers/001/ffn_up/bias"] = file["layers/000/ffn_up/bias"]


def cycle(file: h5py.File) -> None:
    file["layers/000/layers"] = file["layers"]


def without_checksum(file: h5py.File) -> None:
    del file[BIAS].attrs["xxh3_64"]


def text_checksum(file: h5py.File) -> None:
    file[BIAS].attrs["xxh3_64"] = "0"


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def model(**values: object) -> Callable[[h5py.File], None]:
    """The model attribute with some of its fields changed; None removes one."""

    def change(file: h5py.File) -> None:
        found = json.loads(file.attrs["model"])
        found.update(values)
        text = json.dumps({name: value for name, value in found.items() if value is not ...})
        file.attrs["model"] = np.bytes_(text)

    return change


def removed(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]

    return change


TAMPERINGS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "a dataset is missing": (lambda file: file.__delitem__(BIAS), f"lacks 1 dataset, the first is {BIAS}"),
    "a layer is missing": (lambda file: file.__delitem__("layers/001"), "lacks 20 datasets"),
    "a dataset has another name": (moved, "holds 'layers/000/ffn_up/bios'"),
    "a dataset too many": (lambda file: file.create_dataset("extra", data=DENSE), "holds 'extra'"),
    "a group too many": (lambda file: file.create_group("layers/002"), "holds 'layers/002'"),
    "a cycle of groups": (cycle, "holds 'layers/000/layers'"),
    "a group for a dataset": (replaced(BIAS, lambda group, name: group.create_group(name)), "must be a dataset"),
    "a dataset for a group": (
        replaced("layers", lambda group, name: group.create_dataset(name, data=DENSE)),
        "must be a group",
    ),
    "a type for a dataset": (
        replaced(BIAS, lambda group, name: group.__setitem__(name, np.dtype("f4"))),
        "must be a dataset",
    ),
    "a soft link": (
        replaced(BIAS, lambda group, name: group.__setitem__(name, h5py.SoftLink("/layers/001/ffn_up/bias"))),
        "link",
    ),
    "a dangling link": (replaced(BIAS, lambda group, name: group.__setitem__(name, h5py.SoftLink("/nowhere"))), "link"),
    "a link to another file": (
        replaced(BIAS, lambda group, name: group.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/"))),
        "link",
    ),
    "a tokenizer in another file": (
        replaced("tokenizer", lambda group, name: group.__setitem__(name, h5py.ExternalLink("other.h5", "/"))),
        "tokenizer is a soft or external link",
    ),
    "a tokenizer of two axes": (
        replaced("tokenizer", lambda group, name: group.create_dataset(name, data=np.ones((2, 2), np.uint8))),
        "needed the bytes of a tokenizer.json",
    ),
    "a tokenizer of numbers": (
        replaced("tokenizer", lambda group, name: group.create_dataset(name, data=np.ones(4))),
        "has type float64, needed uint8",
    ),
    "an empty space": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=h5py.Empty("f2"))),
        "must be a dataset",
    ),
    "a dataset too long": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=np.zeros(21, np.float16))),
        r"has shape \(21,\), needed \(20,\)",
    ),
    "a dataset with an axis more": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=DENSE.reshape(20, 1))),
        r"has shape \(20, 1\), needed \(20,\)",
    ),
    "a dataset of 2**60 values": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, shape=(1 << 60,), dtype="f2", chunks=(64,))),
        "has shape",
    ),
    "a dataset of another type": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=DENSE.astype(np.float32))),
        "has type float32, needed float16",
    ),
    "a big-endian dataset": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=DENSE.astype(">f2"))),
        "has type >f2, needed float16",
    ),
    "a dataset of texts": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=["a"] * 20)),
        "has type object, needed float16",
    ),
    "a chunked dataset": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=DENSE, chunks=(5,))),
        "must be contiguous and unfiltered",
    ),
    "a compressed dataset": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, data=DENSE, compression="gzip")),
        "must be contiguous and unfiltered",
    ),
    "a dataset in another file": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, (20,), "f2", external=[("/etc/passwd", 0, 40)])),
        "lies in another file",
    ),
    "a dataset never written": (
        replaced(BIAS, lambda group, name: group.create_dataset(name, (20,), "f2")),
        "was never written",
    ),
    "two datasets trade places": (swapped, "does not follow|overlaps or precedes"),
    "two layers trade places": (
        layers_swapped,
        "dataset layers/001/attention_norm/weight overlaps or precedes layers/000",
    ),
    "one dataset under two names": (same_twice, "does not follow|overlaps or precedes"),
    "no checksum": (without_checksum, f"dataset {BIAS} lacks the attribute xxh3_64"),
    "a checksum that is a text": (text_checksum, "must be one integer"),
    "no format": (removed("format"), "root attribute format is missing"),
    "another format": (attribute("format", np.bytes_("other")), "format is 'other', needed 'flexref-weights'"),
    "a later version": (attribute("format_version", 2), "format version 2; this flexref reads version 1"),
    "a version that is a list": (attribute("format_version", [1, 1]), "must be one integer"),
    "an unknown scheme": (
        attribute("scheme", np.bytes_("int3")),
        "unknown quantization scheme 'int3'; known: none, int4",
    ),
    "an unknown type": (attribute("dtype", np.bytes_("float8")), "unknown weight type 'float8'"),
    "another scheme": (attribute("scheme", np.bytes_("none")), "does not go with group size 8"),
    "groups of nothing": (attribute("group_size", 0), "group size must be from 1"),
    "groups below nothing": (attribute("group_size", -8), "group size must be from 1"),
    "groups of another size": (attribute("group_size", 16), "has shape"),
    "tiles of nothing": (attribute("tile_rows", 0), "rows per tile must be from 1"),
    "tiles of another size": (attribute("tile_rows", 149), "holds|has shape|lacks"),
    "no model": (removed("model"), "root attribute model is missing"),
    "a model of variable length": (attribute("model", "{}"), "must be one fixed-length string"),
    "a model that is a number": (attribute("model", 5), "must be one fixed-length string"),
    "a model that is not JSON": (attribute("model", np.bytes_("{")), "is not JSON"),
    "a model that is a list": (attribute("model", np.bytes_("[" * 5000)), "is not JSON"),
    "a model that is no object": (attribute("model", np.bytes_("[]")), "must hold a JSON object"),
    "a model without a field": (model(width=...), "lacks or should not have 'width'"),
    "a model with a field more": (model(depth=4), "lacks or should not have 'depth'"),
    "a wider model": (model(embed_width=11), "has shape|lacks"),
    "a deeper model": (model(layers=3), "lacks 20 datasets"),
    "a model of 10**9 layers": (model(layers=10**9), "layers must be an integer from 1 to"),
    "a model of 4096 layers": (model(layers=4096), "too short for 4098 tensors"),
    "a model of 2**24 tokens": (model(vocabulary=1 << 24), "too short for"),
    "a width of text": (model(width="12"), "width must be an integer"),
    "a flag of text": (model(bias="no"), "bias must be true or false"),
    "end tokens of text": (model(eos_token_ids="2"), "must be a list"),
    "an end token of text": (model(eos_token_ids=["2"]), "token ids must be integers"),
    "an end token out of range": (model(eos_token_ids=[150]), "beyond the vocabulary of 150"),
}
"""What was done to the file, by whom, and what the error says: the trailer always fits."""


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_file_that_does_not_hold_what_its_header_asks_for_is_refused(kit, tiny_file, what: str) -> None:
    change, said = TAMPERINGS[what]
    path = kit.folder() / "tampered.h5"
    path.write_bytes(tiny_file.path.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    kit.reseal(path)
    with pytest.raises(WeightFileError, match=said) as raised:
        open_weight_file(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    with pytest.raises(WeightFileError):
        verify(path)


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        (lambda offset: offset + 8, "which is not aligned"),
        (lambda offset: offset + 4096, "overlaps or precedes|does not follow"),
        (lambda offset: offset - 4096, "overlaps or precedes|does not follow"),
        (lambda offset: 4096, "claims bytes 4096 to 4136; data lies from"),
        (lambda offset: 0, "HDF5 cannot read its metadata"),
        (lambda offset: 1 << 40, "HDF5 cannot read its metadata|claims bytes"),
        (lambda offset: (1 << 64) - 4096, "HDF5 cannot read its metadata|claims bytes"),
        (lambda offset: (1 << 64) - 1, "was never written"),
    ],
)
def test_an_offset_that_leads_astray_is_refused(kit, tiny_file, lead: Callable[[int], int], said: str) -> None:
    """The offset of a dataset stands once in the metadata: it is changed there, and the checksum made to fit."""
    path, content = kit.folder() / "astray.h5", bytearray(tiny_file.path.read_bytes())
    parts = {part.dataset: part for part in open_weight_file(tiny_file.path).parts}
    first, old = next(iter(parts.values())).extent.offset, parts[BIAS].extent.offset
    assert content[:first].count(old.to_bytes(8, "little")) == 1
    at = content.index(old.to_bytes(8, "little"))
    content[at : at + 8] = lead(old).to_bytes(8, "little")
    path.write_bytes(content)
    kit.reseal(path, first)
    with pytest.raises(WeightFileError, match=said):
        open_weight_file(path)
