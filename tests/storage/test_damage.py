"""Damaged and hostile weight files: every one is a FlexrefError or reads as what was written, never anything else."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import WeightFileError
from flexref.storage import schema
from flexref.storage.trailer import TRAILER_BYTES
from flexref.storage.weightfile import open_weight_file, read_part, verify


def refusal(path: Path) -> str | None:
    """What is said of the file when it is opened; None if it is taken."""
    try:
        open_weight_file(path)
    except WeightFileError as error:
        return str(error)
    return None


def assert_told_or_harmless(path: Path, kit, written) -> None:
    """Damage is told when the file is opened, or by `verify` with the dataset's name, or it changes nothing."""
    told = refusal(path)
    if told is not None:
        assert told.startswith(str(path))
        assert "\n" not in told
        return
    found, damaged = open_weight_file(path), verify(path)
    for part in found.parts:
        if part.dataset in damaged:
            with pytest.raises(WeightFileError, match=part.dataset):
                read_part(part)
    if not damaged:
        kit.assert_same(found, written)


def places(path: Path) -> st.SearchStrategy[int]:
    """Positions in the file, every kind of place about as often: metadata, each dataset, gaps, trailer."""
    size = path.stat().st_size
    parts = list(open_weight_file(path).parts)
    first = parts[0].extent.offset
    in_data = st.sampled_from(parts).flatmap(lambda part: st.integers(part.extent.offset, part.extent.stop - 1))
    return st.one_of(
        st.integers(0, first - 1),
        st.integers(0, 1024),
        in_data,
        st.integers(0, size - 1),
        st.integers(size - TRAILER_BYTES, size - 1),
    )


@given(data=st.data())
def test_a_flipped_byte_is_reported_by_dataset_name_or_changes_nothing(kit, tiny_file, data) -> None:
    content = bytearray(tiny_file.path.read_bytes())
    for place in data.draw(st.lists(places(tiny_file.path), min_size=1, max_size=3, unique=True)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = kit.folder() / "flipped.h5"
    path.write_bytes(content)
    assert_told_or_harmless(path, kit, tiny_file)


def test_every_dataset_with_a_flipped_bit_is_named_and_no_other(kit, tiny_file) -> None:
    content, path = bytearray(tiny_file.path.read_bytes()), kit.folder() / "flipped.h5"
    parts = [part for part in open_weight_file(tiny_file.path).parts][::3]
    for number, part in enumerate(parts):
        content[part.extent.offset + number % part.extent.nbytes] ^= 1 << number % 8
    path.write_bytes(content)
    assert verify(path) == [part.dataset for part in parts]


def test_a_damaged_tokenizer_is_told_when_the_file_is_opened_and_by_verify(kit, tiny_file) -> None:
    content, path = bytearray(tiny_file.path.read_bytes()), kit.folder() / "flipped.h5"
    content[open_weight_file(tiny_file.path).tokenizer.extent.offset] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match="dataset tokenizer does not match its checksum"):
        open_weight_file(path)
    assert verify(path) == ["tokenizer"]


@given(data=st.data())
def test_a_truncated_file_is_refused(kit, tiny_file, data) -> None:
    content = tiny_file.path.read_bytes()
    path = kit.folder() / "short.h5"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(WeightFileError, match=r"short\.h5"):
        open_weight_file(path)


@given(extra=st.binary(min_size=1, max_size=200))
def test_bytes_after_the_end_are_refused(kit, tiny_file, extra: bytes) -> None:
    path = kit.folder() / "long.h5"
    path.write_bytes(tiny_file.path.read_bytes() + extra)
    with pytest.raises(WeightFileError, match=r"long\.h5"):
        open_weight_file(path)


def test_a_file_that_lost_a_piece_in_the_middle_is_refused(kit, tiny_file) -> None:
    content, path = tiny_file.path.read_bytes(), kit.folder() / "holed.h5"
    path.write_bytes(content[:40960] + content[45056:])
    with pytest.raises(WeightFileError, match=r"holed\.h5"):
        open_weight_file(path)


@given(data=st.data())
def test_metadata_changed_on_purpose_is_refused_or_reads_as_written(kit, tiny_file, data) -> None:
    """The checksum fits here, so that HDF5 and the checks after it meet every kind of nonsense."""
    content = bytearray(tiny_file.path.read_bytes())
    metadata_bytes = next(open_weight_file(tiny_file.path).parts).extent.offset
    used = np.flatnonzero(np.frombuffer(content[:metadata_bytes], np.uint8)).tolist()
    for place in data.draw(st.lists(st.sampled_from(used), min_size=1, max_size=4, unique=True)):
        content[place] = data.draw(st.integers(0, 255))
    path = kit.folder() / "changed.h5"
    path.write_bytes(content)
    kit.reseal(path, metadata_bytes)
    assert_told_or_harmless(path, kit, tiny_file)


def test_a_file_that_another_program_wrote_to_is_refused(kit, tiny_file) -> None:
    path = kit.folder() / "touched.h5"
    path.write_bytes(tiny_file.path.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["comment"] = "a viewer left this here"
    with pytest.raises(WeightFileError, match=r"another program changed it|does not match its checksum"):
        open_weight_file(path)


@pytest.mark.parametrize("metadata_bytes", [0, 4095, 1 << 40])
def test_a_trailer_that_vouches_for_nonsense_is_refused(kit, tiny_file, metadata_bytes: int) -> None:
    path = kit.folder() / "sealed.h5"
    path.write_bytes(tiny_file.path.read_bytes())
    kit.reseal(path, metadata_bytes)
    with pytest.raises(WeightFileError, match=f"its trailer gives the metadata {metadata_bytes} bytes"):
        open_weight_file(path)


def test_a_trailer_of_another_file_is_refused(kit, tiny_file, tiny_spec) -> None:
    other = kit.write_file(kit.folder() / "other.h5", tiny_spec, "none").path.read_bytes()
    path = kit.folder() / "mixed.h5"
    path.write_bytes(tiny_file.path.read_bytes()[:-TRAILER_BYTES] + other[-TRAILER_BYTES:])
    with pytest.raises(WeightFileError, match="its trailer says"):
        open_weight_file(path)


def test_a_trailer_of_a_later_version_is_told_as_that(kit, tiny_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexref.storage import trailer

    with monkeypatch.context() as patch:
        patch.setattr(trailer, "FORMAT_VERSION", schema.FORMAT_VERSION + 1)
        path = kit.write_file(kit.folder() / "later.h5", tiny_spec).path
    with pytest.raises(WeightFileError, match="format version 2; this flexref reads version 1"):
        open_weight_file(path)
