"""Reading PyTorch files without PyTorch: the same tensors as PyTorch sees, and nothing hostile is ever run."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import CheckpointError, StorageError
from flexref.storage.checkpoint import pickle_machine
from flexref.storage.checkpoint.source import FLOAT_TYPES
from flexref.storage.checkpoint.torch_file import list_torch

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every type, and views of them: slices, transposes, expansions, single rows."""
    shape = draw(st.lists(st.integers(0, 7), max_size=3))
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    found = whole.to(draw(st.sampled_from(DTYPES)))
    if found.dim() and draw(st.booleans()):
        axis = draw(st.integers(0, found.dim() - 1))
        first = draw(st.integers(0, found.shape[axis]))
        found = found.narrow(axis, first, draw(st.integers(0, found.shape[axis] - first)))
    if found.dim() > 1 and draw(st.booleans()):
        found = found.transpose(0, found.dim() - 1)
    return found.expand(3, *found.shape) if draw(st.booleans()) else found


def save(path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


@given(data=st.data())
def test_every_tensor_is_what_pytorch_reads(kit, data) -> None:
    state = data.draw(st.dictionaries(st.text(max_size=8), tensors(), max_size=5))
    path = save(kit.folder() / "model.bin", OrderedDict(state) if data.draw(st.booleans()) else state)
    found = {tensor.name: tensor for tensor in list_torch(path)}
    assert found.keys() == state.keys()
    for name, expected in state.items():
        tensor = found[name]
        assert tensor.dtype == str(expected.dtype).removeprefix("torch.")
        assert tensor.shape == tuple(expected.shape)
        if tensor.dtype in FLOAT_TYPES and expected.dim():
            first = data.draw(st.integers(0, len(expected)))
            stop = data.draw(st.integers(first, len(expected)))
            rows = tensor.read_rows(first, stop).astype(np.float64)
            np.testing.assert_array_equal(rows, expected[first:stop].to(torch.float64).numpy())


def test_a_models_state_dict_with_parameters_and_shared_tensors_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 4)
    state = layer.state_dict()
    state["same"] = state["weight"]
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2))
    state["epoch"], state["steps"], state["last"] = 3, [1, 2, 3], [{"loss": 0.5}]
    found = {tensor.name: tensor for tensor in list_torch(save(tmp_path / "model.bin", state))}
    assert found.keys() == {"weight", "bias", "same", "parameter"}
    assert found["same"].contents == found["weight"].contents
    np.testing.assert_array_equal(found["weight"].read_rows(1, 4), layer.weight.detach().numpy()[1:])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    path = save(tmp_path / "model.bin", {"w": torch.ones(300)}, pickle_protocol=protocol)
    (found,) = list_torch(path)
    assert found.shape == (300,)


class Hostile:
    """Pickles as a call of `callee` with `arguments`."""

    def __init__(self, callee: Callable[..., Any], *arguments: Any) -> None:
        self.call = callee, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("callee", "arguments", "named"),
    [
        (os.system, ("touch {marker}",), r"posix\.system"),
        (eval, ("open('{marker}', 'w')",), r"(builtins|__builtin__)\.eval"),
        (exec, ("open('{marker}', 'w')",), r"(builtins|__builtin__)\.exec"),
        (open, ("{marker}", "w"), r"_?io\.open"),
        (getattr, (str, "format"), r"(builtins|__builtin__)\.getattr"),
        (torch.load, ("{marker}",), r"torch\.serialization\.load"),
        (bytearray, (b"x",), r"(builtins|__builtin__)\.bytearray"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_is_refused_by_name_and_never_run(
    tmp_path: Path, callee: Callable, arguments: tuple, named: str, deep: bool, protocol: int
) -> None:
    marker = tmp_path / "marker"
    filled = tuple(value.format(marker=marker) if isinstance(value, str) else value for value in arguments)
    payload: Any = Hostile(callee, *filled)
    state = {"w": torch.ones(2), "deep": [{"x": (1, payload)}]} if deep else {"w": payload}
    path = save(tmp_path / "model.bin", state, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=rf"model\.bin: refused: its pickle asks for '{named}'; .* was run"):
        list(list_torch(path))
    assert not marker.exists()


def storage_pickle(shape: tuple, strides: tuple, offset: Any = 0, elements: Any = 6, key: Any = "0") -> bytes:
    """A pickle that describes one tensor "w" in these terms, whatever they are."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", elements) if isinstance(value, Storage) else None

    arguments = (Storage(), offset, shape, strides, False, OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Hostile(torch._utils._rebuild_tensor_v2, *arguments)})
    return buffer.getvalue()


def archive(path: Path, pickled: bytes, *, data: bytes = bytes(24), key: str = "0", **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr(f"m/data/{key}", data)
        for name, content in entries.items():
            file.writestr(f"m/{name}", content)
    return path


def test_an_archive_made_by_hand_is_read(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "m.bin", storage_pickle((2, 3), (3, 1)), data=data.tobytes(), byteorder=b"little")
    (found,) = list_torch(path)
    np.testing.assert_array_equal(found.read_rows(0, 2), data.reshape(2, 3))


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"shape": (7,), "strides": (1,)}, "ends at element 6 of a storage of 6"),
        ({"shape": (2, 3), "strides": (4, 1)}, "ends at element 6 of a storage of 6"),
        ({"shape": (6,), "strides": (1,), "offset": 1}, "ends at element 6 of a storage of 6"),
        ({"shape": (1 << 62, 1 << 62), "strides": (1 << 62, 1)}, "ends at element"),
        ({"shape": (2,), "strides": (-1,)}, "has a tensor of shape"),
        ({"shape": (-2,), "strides": (1,)}, "has a tensor of shape"),
        ({"shape": (2,), "strides": (1, 1)}, "has a tensor of shape"),
        ({"shape": (2.0,), "strides": (1,)}, "has a tensor of shape"),
        ({"shape": (True,), "strides": (1,)}, "has a tensor of shape"),
        ({"shape": (2,), "strides": (1,), "offset": -1}, "has a tensor of shape"),
        ({"shape": (2,), "strides": (1,), "offset": "0"}, "calls"),
        ({"shape": (2,), "strides": (1,), "elements": 7}, "has 24 bytes, its pickle asks for 28"),
        ({"shape": (2,), "strides": (1,), "elements": 1 << 80}, "has 24 bytes, its pickle asks for"),
        ({"shape": (2,), "strides": (1,), "elements": -1}, "describes no storage"),
        ({"shape": (2,), "strides": (1,), "key": "1"}, r"lacks the entry 'm/data/1'"),
        ({"shape": (2,), "strides": (1,), "key": "../data.pkl"}, r"lacks the entry 'm/data/\.\./data.pkl'"),
        ({"shape": (2,), "strides": (1,), "key": 0}, "describes no storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, described: dict, said: str) -> None:
    path = archive(tmp_path / "m.bin", storage_pickle(**described))
    with pytest.raises(CheckpointError, match=said) as raised:
        list(list_torch(path))
    assert str(raised.value).startswith(str(path))


def test_compressed_entries_are_refused_and_never_expanded(tmp_path: Path) -> None:
    whole = storage_pickle((6,), (1,))
    for compressed in ("m/data.pkl", "m/data/0"):
        path = tmp_path / "bomb.bin"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (("m/data.pkl", whole), ("m/data/0", bytes(24))):
                kind = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
                file.writestr(zipfile.ZipInfo(name), content * (1000 if kind else 1), kind)
        with pytest.raises(CheckpointError, match=f"entry '{compressed}' is compressed"):
            list(list_torch(path))


def test_an_archive_that_lies_about_itself_is_refused(tmp_path: Path) -> None:
    whole = storage_pickle((6,), (1,))
    cases = {
        "was saved on a big-endian machine": archive(tmp_path / "1.bin", whole, byteorder=b"big"),
        "it has 0 entries data.pkl": tmp_path / "2.bin",
        "it has 2 entries data.pkl": archive(tmp_path / "3.bin", whole, **{"n/data.pkl": whole}),
        "bytes, at most": archive(tmp_path / "4.bin", bytes(pickle_machine.LARGEST_PICKLE_BYTES + 1)),
    }
    with zipfile.ZipFile(tmp_path / "2.bin", "w") as file:
        file.writestr("m/data/0", bytes(24))
    for said, path in cases.items():
        with pytest.raises(CheckpointError, match=said):
            list(list_torch(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
        for _ in range(2):
            file.writestr("m/data.pkl", storage_pickle((6,), (1,)))
    with pytest.raises(CheckpointError, match=r"has two entries of the name 'm/data.pkl'"):
        list(list_torch(tmp_path / "m.bin"))


def test_an_entry_whose_header_leads_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", storage_pickle((6,), (1,)))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x03\x04", 4)  # the second local header: that of the data
    content[at + 28 : at + 30] = struct.pack("<H", 60000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="entry 'm/data/0' lies beyond the end of the file"):
        list(list_torch(path))


def test_the_old_format_and_foreign_files_are_one_clear_line(tmp_path: Path) -> None:
    old = save(tmp_path / "old.bin", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.bin is in PyTorch's format from before version 1\.6"):
        list(list_torch(old))
    for content in (b"", b"x", b"PK\x03\x04", bytes(1000)):
        (tmp_path / "foreign.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"foreign\.bin is no valid PyTorch checkpoint"):
            list(list_torch(tmp_path / "foreign.bin"))
    with pytest.raises(StorageError, match=r"cannot read .*missing\.bin: No such file"):
        list(list_torch(tmp_path / "missing.bin"))


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_its_bounds(kit, damage_is_met, data) -> None:
    path = save(kit.folder() / "model.bin", {"a": torch.ones(5, 7), "b": torch.zeros(3, dtype=torch.float16)})
    damage_is_met(data, path, list_torch)
