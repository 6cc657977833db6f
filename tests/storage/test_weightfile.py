"""Opening a weight file: names, extents and checks of what is read; damage of every kind is in test_damage.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flexref.architecture.stages import parameters
from flexref.errors import FlexrefError, StorageError, WeightFileError
from flexref.storage import names, weightfile
from flexref.storage.names import resolve
from flexref.storage.quant import Quantized, dequantize, error_bound
from flexref.storage.weightfile import check_bytes, open_weight_file, read_part, read_tensor, verify


def test_extents_are_where_plain_reads_find_the_bytes(tiny_file) -> None:
    found = open_weight_file(tiny_file.path)
    content = tiny_file.path.read_bytes()
    for part in found.parts:
        assert part.extent.path == str(tiny_file.path)
        assert part.extent.stop == part.extent.offset + part.extent.nbytes
        raw = content[part.extent.offset : part.extent.stop]
        check_bytes(part, raw)
        np.testing.assert_array_equal(np.frombuffer(raw, part.dtype).reshape(part.shape), read_part(part))


def test_sizes_add_up(tiny_file) -> None:
    found = open_weight_file(tiny_file.path)
    assert found.nbytes == sum(tensor.nbytes for tensor in found.tensors.values())
    assert found.nbytes == sum(part.extent.nbytes for part in found.parts) - len(found.tokenizer_json)
    assert sum(tensor.elements for tensor in found.tensors.values()) == parameters(found.spec)
    assert found.file_bytes == tiny_file.path.stat().st_size


def test_a_quantized_tensor_reads_as_groups_close_to_what_was_written(tiny_file) -> None:
    stored = open_weight_file(tiny_file.path).tensors["layers/001/ffn_down/weight"]
    found = read_tensor(stored)
    assert isinstance(found, Quantized)
    assert found.shape == stored.shape
    assert (np.abs(dequantize(found) - tiny_file.tensors[stored.name]) <= error_bound(found)).all()


def test_check_bytes_takes_any_buffer_and_names_the_dataset(tiny_file) -> None:
    part = open_weight_file(tiny_file.path).tensors["layers/000/ffn_up/weight"].parts[1]
    values = read_part(part)
    for buffer in (values, values.tobytes(), bytearray(values.tobytes()), memoryview(values)):
        check_bytes(part, buffer)
    flipped = bytearray(values.tobytes())
    flipped[3] ^= 1
    for buffer, said in ((flipped, "does not match its checksum"), (flipped[:-1], "bytes, .* were read")):
        with pytest.raises(WeightFileError, match=f"layers/000/ffn_up/weight/scale .*{said}"):
            check_bytes(part, buffer)


def test_verify_tells_its_progress_in_bytes(tiny_file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weightfile, "CHUNK_BYTES", 100)
    seen: list[tuple[int, int]] = []
    assert verify(tiny_file.path, lambda done, total: seen.append((done, total))) == []
    total = sum(part.extent.nbytes for part in open_weight_file(tiny_file.path).parts)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= total // 100


def test_a_file_without_a_tokenizer_says_so(kit, tiny_spec) -> None:
    found = open_weight_file(kit.write_file(kit.folder() / "model.h5", tiny_spec).path)
    assert found.tokenizer is None
    assert found.tokenizer_json is None


def test_opening_leaves_no_descriptor_open(tiny_file, open_files) -> None:
    before = open_files()
    open_weight_file(tiny_file.path)
    assert open_files() <= before


def test_resolve_finds_files_and_the_built_in_model(tiny_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tiny_file.path) == str(tiny_file.path)
    shipped = tmp_path / "flexref" / "data" / "demo.h5"
    shipped.parent.mkdir(parents=True)
    monkeypatch.setattr(names, "__file__", str(tmp_path / "flexref" / "storage" / "names.py"))
    with pytest.raises(StorageError, match="built-in model is missing"):
        resolve("demo")
    shipped.touch()
    assert resolve("demo") == str(shipped)


@pytest.mark.parametrize("name", ["missing.h5", "folder"])
def test_a_missing_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for ask in (resolve, open_weight_file, verify):
        with pytest.raises(FlexrefError, match=name) as raised:
            ask(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"not a model" * 1000, b"\x89HDF\r\n\x1a\n" + bytes(10_000)])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.h5").write_bytes(content)
    with pytest.raises(WeightFileError, match=r"foreign\.h5 (is not a flexref weight file|does not end with)"):
        open_weight_file(tmp_path / "foreign.h5")


def test_a_part_beyond_the_end_of_its_file_is_an_error(tiny_file) -> None:
    part = next(open_weight_file(tiny_file.path).parts)
    beyond = replace(part, extent=replace(part.extent, offset=tiny_file.path.stat().st_size - 1))
    with pytest.raises(WeightFileError, match="truncated inside dataset embed/positions"):
        read_part(beyond)
