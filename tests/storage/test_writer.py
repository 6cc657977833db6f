"""Writing a weight file: what comes back, how it lies on the disk, and that it appears whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import file_stages
from flexref.errors import CheckpointError, FlexrefError, QuantizationError, StorageError
from flexref.files import NewFile
from flexref.storage import writer as writer_module
from flexref.storage.quant import quantize
from flexref.storage.weightfile import open_weight_file, read_tensor, verify
from flexref.storage.writer import WeightFileWriter

SCHEMES = ("none", "int4", "int4-mse", "int8")
"""The schemes whose codes follow from the values alone."""


@given(data=st.data())
def test_what_was_written_is_read_back_bit_for_bit(kit, data) -> None:
    spec = data.draw(kit.model_specs())
    scheme, dtype = data.draw(st.sampled_from(SCHEMES)), data.draw(st.sampled_from(["float16", "float32"]))
    group_size, tokenizer = data.draw(st.integers(1, 70)), data.draw(st.binary(max_size=300))
    written = kit.write_file(kit.folder() / "model.h5", spec, scheme, group_size, dtype, tokenizer)
    found = open_weight_file(written.path)
    assert found.spec == spec
    assert (found.scheme, found.dtype) == (scheme, dtype)
    assert found.group_size == (None if scheme == "none" else group_size)
    assert found.tokenizer_json == (tokenizer or None)
    assert list(found.tensors) == [
        tensor.name for stage in file_stages(spec, found.tile_rows) for tensor in stage.tensors
    ]
    kit.assert_same(found, written)
    assert verify(written.path) == []


@given(data=st.data())
def test_every_dataset_is_aligned_and_a_stage_is_one_run_of_bytes(kit, data) -> None:
    spec = data.draw(kit.model_specs())
    scheme = data.draw(st.sampled_from(SCHEMES))
    path = kit.write_file(kit.folder() / "model.h5", spec, scheme).path
    tile_rows = open_weight_file(path).tile_rows
    with h5py.File(path, "r") as file:
        for stage in file_stages(spec, tile_rows):
            end = None
            for tensor in stage.tensors:
                found = file[tensor.name]
                parts = (
                    [found] if isinstance(found, h5py.Dataset) else [found[part] for part in ("codes", "scale", "zero")]
                )
                for part in parts:
                    offset = part.id.get_offset()
                    assert offset % 4096 == 0
                    assert end is None or offset == -(-end // 4096) * 4096
                    end = offset + part.id.get_storage_size()


def test_only_matrices_of_decoder_layers_are_quantized(tiny_file) -> None:
    found = open_weight_file(tiny_file.path)
    quantized = {name for name, tensor in found.tensors.items() if tensor.scheme == "int4"}
    assert quantized == {
        f"layers/{layer:03d}/{unit}/weight"
        for layer in range(2)
        for unit in ("attention_qkv", "attention_out", "ffn_up", "ffn_down")
    }


def test_any_hdf5_viewer_shows_the_same_arrays_and_plain_attributes(tiny_file, tiny_spec: ModelSpec) -> None:
    found = open_weight_file(tiny_file.path)
    with h5py.File(tiny_file.path, "r") as file:
        assert {name: file.attrs[name] for name in ("scheme", "dtype", "format")} == {
            "scheme": b"int4",
            "dtype": b"float16",
            "format": b"flexref-weights",
        }
        assert [file.attrs[name] for name in ("format_version", "group_size", "tile_rows")] == [1, 8, found.tile_rows]
        assert b'"vocabulary": 150' in file.attrs["model"]
        for name in file.attrs:
            assert not h5py.check_dtype(vlen=file.attrs.get_id(name).dtype)
        for part in found.parts:
            dataset = file[part.dataset]
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.id.get_offset() == part.extent.offset
        np.testing.assert_array_equal(file["embed/positions"], read_tensor(found.tensors["embed/positions"]))
        assert bytes(file["tokenizer"][:]) == found.tokenizer_json


def test_no_metadata_lies_among_the_data(tiny_file, kit) -> None:
    """Whatever stands in the gaps between datasets, HDF5 and the reader see the same file."""
    found, path = open_weight_file(tiny_file.path), kit.folder() / "gaps.h5"
    content = bytearray(tiny_file.path.read_bytes())
    ends = [part.extent.stop for part in found.parts]
    for end in ends:
        next_start = min(
            [part.extent.offset for part in found.parts if part.extent.offset >= end], default=len(content) - 64
        )
        content[end:next_start] = np.random.default_rng(end).bytes(next_start - end)
    assert bytes(content) != tiny_file.path.read_bytes()
    path.write_bytes(content)
    kit.assert_same(open_weight_file(path), tiny_file)
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
    assert {part.dataset for part in found.parts} <= set(names)


def test_the_same_weights_make_the_same_file(kit, tiny_spec: ModelSpec) -> None:
    first, second = (kit.write_file(kit.folder() / "model.h5", tiny_spec).path.read_bytes() for _ in range(2))
    assert first == second


@settings(max_examples=10)
@given(slab_elements=st.integers(1, 5000))
def test_the_file_does_not_depend_on_the_size_of_slabs(kit, tiny_spec, tiny_file, slab_elements: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "SLAB_ELEMENTS", slab_elements)
        path = kit.write_file(kit.folder() / "model.h5", tiny_spec, tokenizer=b'{"model": {}}').path
    assert path.read_bytes() == tiny_file.path.read_bytes()


def test_a_finished_file_has_the_rights_that_a_new_file_gets(kit, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    (tmp_path / "plain").touch()
    kit.write_file(tmp_path / "model.h5", tiny_spec)
    assert (tmp_path / "model.h5").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.h5", "plain"]


def failing_write(path: Path, spec: ModelSpec, name: str, values: object, dtype: str = "float16") -> None:
    """Write random tensors, but `values` filled into the tensor `name`."""
    with WeightFileWriter(path, spec, "int4", 8, dtype) as writer:
        for tensor in writer.tensors:
            array = np.random.default_rng(0).standard_normal(tensor.shape)
            if tensor.name == name:
                array.flat[-1] = values
            writer.write(tensor.name, array)


@pytest.mark.parametrize("before", [None, b"an older file"])
@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("embed/positions", np.nan, CheckpointError, "not finite"),
        ("layers/001/ffn_up/bias", -np.inf, CheckpointError, "not finite"),
        ("layers/001/ffn_up/bias", 1e6, CheckpointError, "beyond the range of float16; use float32"),
        ("layers/000/ffn_down/weight", np.inf, QuantizationError, "not finite"),
        ("tokens/0000", np.nan, CheckpointError, "not finite"),
    ],
)
def test_bad_weights_are_refused_by_name_and_leave_the_folder_as_it_was(
    tmp_path: Path, tiny_spec: ModelSpec, name: str, value: float, error: type, said: str, before: bytes | None
) -> None:
    path = tmp_path / "model.h5"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error, match=f"^{name}: .*{said}"):
        failing_write(path, tiny_spec, name, value)
    assert [found.read_bytes() for found in tmp_path.iterdir()] == ([] if before is None else [before])


def test_misuse_is_refused_and_leaves_nothing(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    path = tmp_path / "model.h5"
    first = np.zeros((8, 12))

    def left_early() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16") as writer:
            writer.write("embed/positions", first)

    def wrong_order() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16") as writer:
            writer.write("embed/project_in", np.zeros((12, 10)))

    def wrong_width() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16") as writer:
            writer.write("embed/positions", first[:, :5])

    def too_many_rows() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16") as writer:
            writer.write_slabs("embed/positions", [("a", first), ("b", first)])

    def too_few_rows() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16") as writer:
            writer.write("embed/positions", first[:5])

    for misuse in (left_early, wrong_order, wrong_width, too_many_rows, too_few_rows):
        with pytest.raises(ValueError, match=r"embed/pro|embed/pos"):
            misuse()
        assert list(tmp_path.iterdir()) == []


def test_a_model_whose_description_is_too_long_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", 200, 6, 12, 12, 1, 3, 20, eos_token_ids=tuple(range(100)) * 100)
    with pytest.raises(CheckpointError, match=r"model .tiny.: its description takes .* bytes, at most 32768 fit"):
        WeightFileWriter(tmp_path / "model.h5", spec, "none", None, "float16").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096))
    writer = WeightFileWriter(tmp_path / "model.h5", tiny_spec, "int4", 8, "float16")
    with pytest.raises(StorageError, match=r"too little room for model.h5: needed .* KiB, free 12.00 KiB"):
        writer.__enter__()
    assert list(tmp_path.iterdir()) == []


def test_the_room_asked_for_is_enough_and_not_far_above(kit, tiny_spec: ModelSpec) -> None:
    for scheme in ("none", "int4"):
        writer = WeightFileWriter("unused.h5", tiny_spec, scheme, 8, "float16")
        size = kit.write_file(kit.folder() / "model.h5", tiny_spec, scheme).path.stat().st_size
        assert size <= writer.nbytes <= 1.5 * size


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("missing/model.h5", "there is no folder .*/missing"),
        ("file/model.h5", ".*/file is no folder"),
        ("folder", "it is a folder"),
        ("/", "it is a folder"),
        (".", "it is a folder"),
        ("/proc/model.h5", ".*"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, tiny_spec: ModelSpec, place: str, why: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=rf"^cannot write [^:]*: {why}$") as raised:
        WeightFileWriter(tmp_path / place, tiny_spec, "int4", 8, "float16").__enter__()
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


WRITE_IN_PROCESS = """
import os, resource, signal, sys
import numpy as np
from flexref.errors import FlexrefError
from flexref.architecture.spec import ModelSpec
from flexref.files import NewFile
from flexref.storage.writer import WeightFileWriter
path, what, *named = sys.argv[1:]
if named:
    NewFile._unnamed = lambda self: -1
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
spec = ModelSpec("tiny", 150, 6, 256, 256, 2, 4, 1024)
try:
    with WeightFileWriter(path, spec, "none", None, "float32") as writer:
        for at, tensor in enumerate(writer.tensors):
            writer.write(tensor.name, np.ones(tensor.shape, np.float32))
            if what == "killed" and at == 9:
                os.kill(os.getpid(), signal.SIGKILL)
except FlexrefError as error:
    print(error)
"""


def write_in_process(path: Path, what: str, unnamed: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WRITE_IN_PROCESS, str(path), what, *([] if unnamed else ["named"])]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_disk_that_fills_up_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = write_in_process(tmp_path / "model.h5", "full")
    assert done.stdout == f"cannot write {tmp_path}/model.h5: File too large\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    assert write_in_process(tmp_path / "model.h5", "killed").returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_without_unnamed_files_a_killed_writer_leaves_none_that_looks_whole_and_the_next_one_removes_it(
    tmp_path: Path, kit, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.h5"
    assert write_in_process(path, "killed", unnamed=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    with pytest.raises(FlexrefError):
        open_weight_file(left)
    monkeypatch.setattr(NewFile, "_unnamed", lambda self: -1)

    def write_beside_another() -> None:
        with WeightFileWriter(path, tiny_spec, "none", None, "float16"):
            (ours,) = tmp_path.iterdir()
            assert ours.name != left.name
            kit.write_file(path, tiny_spec)  # another writer, which leaves alone what somebody still writes
            assert {found.name for found in tmp_path.iterdir()} == {ours.name, "model.h5"}

    with pytest.raises(ValueError, match="was not written"):
        write_beside_another()
    assert [found.name for found in tmp_path.iterdir()] == ["model.h5"]


def write_groups(path: Path, spec: ModelSpec, scheme: str, groups: Callable[[Any], Any]) -> None:
    """A file whose matrices are written as what `groups` makes of them."""
    with WeightFileWriter(path, spec, scheme, 8, "float16") as writer:
        for tensor in writer.tensors:
            values = np.ones(tensor.shape, np.float32)
            writer.write(tensor.name, groups(values) if tensor.quantizable else values)


@pytest.mark.parametrize(
    ("scheme", "group_size", "bits", "scale_dtype"),
    [("int4", 16, 4, "float16"), ("int4", 8, 8, "float16"), ("int4", 8, 4, "float32"), ("none", 8, 4, "float16")],
)
def test_groups_of_another_layout_are_a_bug_of_the_caller(
    tmp_path: Path, tied_spec: ModelSpec, scheme: str, group_size: int, bits: int, scale_dtype: str
) -> None:
    with pytest.raises(ValueError, match=r"do not fit the file|holds it dense"):
        write_groups(
            tmp_path / "model.h5",
            tied_spec,
            scheme,
            lambda values: quantize(values, group_size, scale_dtype, "w", bits),
        )


def test_a_calibrated_files_codes_must_be_given(tmp_path: Path, tied_spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="do not follow from the values alone"):
        write_groups(tmp_path / "model.h5", tied_spec, "int4-calibrated", lambda values: values)
    write_groups(
        tmp_path / "model.h5", tied_spec, "int4-calibrated", lambda values: quantize(values, 8, np.float16, "w")
    )
    assert verify(tmp_path / "model.h5") == []
