"""Listing a safetensors file: the same bytes as the library reads, and nonsense is one clear line."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flexref.errors import CheckpointError, StorageError
from flexref.storage.checkpoint.safetensors_file import list_safetensors
from flexref.storage.checkpoint.source import FLOAT_TYPES

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", ml_dtypes.bfloat16)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape) * 9
    return np.asarray(np.asarray(values).astype(draw(st.sampled_from(DTYPES))))


@given(data=st.data())
def test_every_tensor_is_what_the_library_reads(kit, data) -> None:
    path = kit.folder() / "model.safetensors"
    save_file(data.draw(st.dictionaries(st.text(max_size=8), arrays(), max_size=6)), path)
    expected, found = load_file(path), {tensor.name: tensor for tensor in list_safetensors(path)}
    assert found.keys() == expected.keys()
    for name, values in sorted(expected.items()):  # the library saves them in an order of its own
        tensor = found[name]
        assert tensor.shape == values.shape
        if tensor.dtype in FLOAT_TYPES and tensor.shape:
            first = data.draw(st.integers(0, len(values)))
            stop = data.draw(st.integers(first, len(values)))
            rows = tensor.read_rows(first, stop)
            assert rows.dtype == values.dtype
            np.testing.assert_array_equal(rows.astype(np.float64), values[first:stop].astype(np.float64))


def written(path: Path, header: object, data: bytes) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: str, shape: list, first: int, stop: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, stop]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry("F32", [3], 0, 12)}, bytes(11)),
        ({"a": entry("F32", [3], 0, 12)}, bytes(13)),
        ({"a": entry("F32", [3], 0, 8)}, bytes(8)),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, bytes(20)),
        ({"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, bytes(8)),
        ({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
        ({"a": entry("F31", [1], 0, 4)}, bytes(4)),
        ({"a": entry("F32", [1], 4, 0)}, bytes(4)),
        ({"a": 5}, b""),
        ([], b""),
    ],
)
def test_a_header_that_lies_is_one_clear_line(tmp_path: Path, header: object, data: bytes) -> None:
    path = written(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CheckpointError, match=r"m\.safetensors is no valid safetensors file: ") as raised:
        list(list_safetensors(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}", bytes(8), bytes(100)])
def test_a_foreign_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.safetensors is no valid safetensors file: "):
        list(list_safetensors(tmp_path / "m.safetensors"))


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*m\.safetensors: No such file"):
        list(list_safetensors(tmp_path / "m.safetensors"))


def test_a_type_of_unknown_size_is_refused_by_name(tmp_path: Path) -> None:
    header = {"a": entry("F8_E4M3", [4], 0, 4), "b": entry("F32", [1], 4, 8)}
    with pytest.raises(CheckpointError, match="tensor a has type F8_E4M3"):
        list(list_safetensors(written(tmp_path / "m.safetensors", header, bytes(8))))


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_its_bounds(kit, damage_is_met, data) -> None:
    path = kit.folder() / "model.safetensors"
    save_file({"a": np.ones((5, 7), np.float32), "b": np.zeros(3, np.float16)}, path)
    damage_is_met(data, path, list_safetensors)
