"""Files of logits from anywhere: nothing is unpickled, no stated size is believed, every complaint is one line."""

import io
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flexref.files
from flexref.architecture.spec import ModelSpec
from flexref.check.logits import Job, stage_count
from flexref.check.logits_compare import compare_logits
from flexref.check.logits_file import ArraysFile, ArraysWriter
from flexref.check.logits_reference import read_about, write_reference
from flexref.errors import FlexrefError, LogitsFileError, StorageError, WrongCall
from flexref.storage.weightfile import open_weight_file

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 96)
ROWS = [[5, 6, 7, 44, 9, 10], [3]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reference of two rows, the last three positions of each, for two types."""
    from flexref.check.models import write_model

    folder = tmp_path_factory.mktemp("reference")
    write_model(folder / "model.h5", SPEC)
    job = Job(open_weight_file(folder / "model.h5"), ROWS, [3, 0])
    write_reference(folder / "ref.npz", job, ["a", None], ("float32", "bfloat16"))
    return str(folder / "ref.npz")


def right(reference: str) -> dict[str, Any]:
    """What an engine without any error gives."""
    with np.load(reference) as held:
        return {f"logits_{row}": held[f"logits_{row}"] for row in range(2)}


def compared(reference: str, theirs: Path | str, dtype: str = "float32") -> Any:
    with ArraysFile(reference) as first, ArraysFile(theirs) as second:
        return compare_logits(first, second, dtype)


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def test_numpy_reads_a_reference_without_pickles(reference: str) -> None:
    with np.load(reference, allow_pickle=False) as held:
        assert held["logits_0"].shape == held["bound_bfloat16_0"].shape == (3, 61)
        assert held["logits_1"].shape == (1, 61)
        assert held["ids_0"].tolist() == ROWS[0]
        assert (held["logits_0"].dtype, held["bound_float32_0"].dtype) == (np.float64, np.float32)
        assert (held["bound_float32_0"] < held["bound_bfloat16_0"]).all()
    with ArraysFile(reference) as file:
        about = read_about(file)
    assert [(row.record_id, row.tokens, row.positions) for row in about.rows] == [("a", 6, 3), (None, 1, 1)]
    assert about.spec["layers"] == 2
    assert len(about.checksum) == 16


def test_an_engine_without_error_is_within_and_one_logit_that_is_off_is_named(reference: str, tmp_path: Path) -> None:
    arrays = right(reference)
    found = compared(reference, saved(tmp_path / "right.npz", arrays))
    assert (found.within, found.fault, found.worst.worst.share) == (True, None, 0)
    arrays["logits_0"][1, 7] += 0.5
    found = compared(reference, saved(tmp_path / "wrong.npz", arrays))
    assert not found.within
    assert found.fault.startswith("the logits are not those of tiny: row 0, position 4, token 7: found ")
    assert [(row.outside, row.diverging) for row in found.rows][1] == (0, 0)
    assert found.rows[0].outside == 1
    assert found.rows[0].largest_error == pytest.approx(0.5)
    assert compared(reference, tmp_path / "wrong.npz", "bfloat16").rows[0].worst.bound > found.rows[0].worst.bound


def test_the_first_other_greedy_token_is_told_with_what_rounding_permits(reference: str, tmp_path: Path) -> None:
    arrays = right(reference)
    first, second = np.argsort(arrays["logits_0"][1])[::-1][:2]
    gap = arrays["logits_0"][1, first] - arrays["logits_0"][1, second]
    arrays["logits_0"][1, second] += gap + 1e-9
    (divergence,) = [
        row.first_divergence for row in compared(reference, saved(tmp_path / "x.npz", arrays)).rows if row.diverging
    ]
    assert (divergence.position, divergence.token_id, divergence.needed_token_id) == (4, second, first)
    assert divergence.gap == pytest.approx(gap)
    assert divergence.tie == (gap <= divergence.permitted)


@pytest.mark.parametrize(
    ("name", "value"),
    [("logits_1", np.nan), ("logits_1", np.inf), *(("bound_float32_1", value) for value in (np.nan, np.inf, -1.0))],
)
def test_a_reference_by_which_nothing_can_be_judged_is_refused(
    reference: str, tmp_path: Path, name: str, value: float
) -> None:
    with np.load(reference) as held:
        arrays = {key: held[key].copy() for key in held.files}
    arrays[name][0, 3] = value
    broken = saved(tmp_path / "broken.npz", arrays)
    theirs = saved(tmp_path / "theirs.npz", right(reference))
    with pytest.raises(LogitsFileError, match=rf"broken\.npz: the array '{name}' holds .*, needed a finite number"):
        compared(str(broken), theirs)


def test_an_error_where_the_bound_is_0_is_more_than_any_rounding(reference: str, tmp_path: Path) -> None:
    with np.load(reference) as held:
        arrays = {key: held[key].copy() for key in held.files}
    arrays["bound_float32_1"][0, 3] = 0
    broken = saved(tmp_path / "exact.npz", arrays)
    theirs = right(reference)
    theirs["logits_1"][0, 3] += 0.5
    found = compared(str(broken), saved(tmp_path / "theirs.npz", theirs))
    assert found.fault is not None
    assert "off by more than any rounding" in found.fault
    assert found.to_json()["rows"][1]["worst"]["share"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_is_outside(reference: str, tmp_path: Path, value: float) -> None:
    arrays = right(reference)
    arrays["logits_1"][0, 5] = value
    found = compared(reference, saved(tmp_path / "x.npz", arrays), "bfloat16")
    assert not found.within
    assert found.worst.worst.token_id == 5
    assert "more than any rounding" in found.fault
    assert found.to_json()["rows"][1]["worst"]["share"] is None


def test_all_positions_narrow_types_compression_and_other_byte_orders_are_taken(reference: str, tmp_path: Path) -> None:
    arrays = right(reference)
    whole = np.concatenate((np.zeros((3, 61)), arrays["logits_0"]))
    for dtype in ("<f4", ">f4", "<f8", ">f8"):
        both = {"logits_0": whole.astype(dtype), "logits_1": arrays["logits_1"].astype(dtype)}
        np.savez_compressed(tmp_path / "x.npz", ids_0=np.array(ROWS[0], np.int32), **both)
        assert compared(reference, tmp_path / "x.npz").within
    both = {name: values.astype(np.float16) for name, values in arrays.items()}
    assert compared(reference, saved(tmp_path / "x.npz", both), "bfloat16").within


def test_pieces_of_one_position_find_the_same(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = right(reference)
    arrays["logits_0"] = np.concatenate((np.zeros((3, 61)), arrays["logits_0"] + 1e-4))
    path = saved(tmp_path / "x.npz", arrays)
    whole = compared(reference, path).to_json()
    monkeypatch.setattr("flexref.check.logits_compare.PIECE_BYTES", 1)
    assert compared(reference, path).to_json() == whole


Change = Callable[[dict[str, Any]], object]

MISFITS: dict[str, tuple[Change, str]] = {
    "a row is missing": (lambda a: a.pop("logits_1"), "needed an array 'logits_1', found logits_0"),
    "a row too many": (lambda a: a.update(logits_2=a["logits_1"]), "has an array 'logits_2', but the reference has 2"),
    "another vocabulary": (lambda a: a.update(logits_0=np.zeros((3, 62))), "shape (3, 62), needed (3, 61) or (6, 61)"),
    "a batch axis": (lambda a: a.update(logits_1=np.zeros((1, 1, 61))), "has shape (1, 1, 61), needed (1, 61)"),
    "integers": (lambda a: a.update(logits_1=np.zeros((1, 61), int)), "is of type int64, needed float16, float32 or"),
    "objects": (
        lambda a: a.update(logits_1=np.array([[print] * 61])),
        "'logits_1' cannot be read: it holds Python objects, which are not unpickled",
    ),
    "columns first": (
        lambda a: a.update(logits_0=np.asfortranarray(np.zeros((3, 61)))),
        "its columns lie one after another; np.ascontiguousarray",
    ),
    "other tokens": (lambda a: a.update(ids_0=np.array([5, 6, 8, 44, 9, 10])), "ids_0 are other tokens than the"),
    "fewer tokens": (lambda a: a.update(ids_0=np.array([5, 6])), "other tokens than the reference's, from number 2 on"),
    "many tokens": (lambda a: a.update(ids_0=np.zeros(99, int)), "needed one axis of at most 7 numbers"),
}


@pytest.mark.parametrize(("change", "said"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_told_by_name(reference: str, tmp_path: Path, change: Change, said: str) -> None:
    arrays = right(reference)
    change(arrays)
    with pytest.raises(LogitsFileError) as refused:
        compared(reference, saved(tmp_path / "x.npz", arrays))
    assert str(refused.value).startswith(f"{tmp_path}/x.npz: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_comparison_tells_how_many_rows_are_done(reference: str) -> None:
    told: list[tuple[int, int]] = []
    with ArraysFile(reference) as first, ArraysFile(reference) as second:
        compare_logits(first, second, "float32", lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_type_without_bounds_is_a_wrong_call(reference: str) -> None:
    with pytest.raises(WrongCall, match="has bounds for float32, bfloat16, none for float16"):
        compared(reference, reference, "float16")


def test_a_file_of_logits_is_no_reference(reference: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", right(reference))
    with pytest.raises(LogitsFileError, match="no reference of `flexref logits`: it has no array 'about'"):
        compared(str(path), reference)


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", how) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return held.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"logits\n" * 100,
    "a single array": lambda: header("(3, 61)") + bytes(3 * 61 * 8),
    "no array in it": lambda: archive({"logits_0.npy": b"none"}),
    "a shape that is not there": lambda: archive({"logits_0.npy": header("(3, 61)") + bytes(8)}),
    "longer than its shape": lambda: archive({"logits_0.npy": header("(3, 61)") + bytes(3 * 61 * 8 + 1)}),
    "a vast shape": lambda: archive({"logits_0.npy": header("(10**18, 10**18)")}),
    "a vast shape in digits": lambda: archive({"logits_0.npy": header("(1000000000000000000, 61)")}),
    "a negative shape": lambda: archive({"logits_0.npy": header("(-3, 61)")}),
    "nested brackets": lambda: archive({"logits_0.npy": header("(" * 3000 + ")" * 3000)}),
    "a long header": lambda: archive({"logits_0.npy": header(" " * 20_000 + "(3, 61)")}),
    "a type of no size": lambda: archive({"logits_0.npy": header("(3, 61)", "'|S0'")}),
    "a type in a type": lambda: archive({"logits_0.npy": header("(3, 61)", "[('a', '<f8', (3,))]")}),
    "no type": lambda: archive({"logits_0.npy": header("(3, 61)", "'pickle'")}),
    "a bomb": lambda: archive({"logits_0.npy": header("(3, 61)") + bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "too many members": lambda: archive({f"{number}.npy": b"" for number in range(60_000)}),
    "bzip2 that is none": lambda: archive({"logits_0.npy": bytes(999)}, zipfile.ZIP_BZIP2).replace(b"BZh", b"BZx"),
    "encrypted": lambda: archive({"logits_0.npy": header("(3, 61)")}).replace(
        b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(reference: str, tmp_path: Path, data: Callable[[], bytes]) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(data())
    with pytest.raises(LogitsFileError) as refused:
        compared(reference, path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(path))
    with pytest.raises(LogitsFileError):
        compared(str(path), reference)


def test_no_damage_of_any_byte_is_more_than_a_complaint(reference: str, tmp_path: Path) -> None:
    """Nothing but an error for users comes of a damaged file, as reference or as the other; most damage is seen."""
    data, draw, seen = Path(reference).read_bytes(), np.random.default_rng(0), 0
    path = tmp_path / "x.npz"
    for number in range(300):
        damaged = bytearray(data)
        if number % 5 == 0:
            damaged = damaged[: draw.integers(len(damaged))]
        else:
            damaged[draw.integers(len(damaged))] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged)
        for pair in ((path, reference), (reference, path)):
            try:
                compared(*map(str, pair))
            except FlexrefError:
                seen += 1
    assert seen > 300


@pytest.mark.parametrize("about", [b"{", b"[]", b"{}", b'{"format": 2}', b"[" * 100_000])
def test_what_a_reference_says_of_itself_is_checked(reference: str, tmp_path: Path, about: bytes) -> None:
    path = saved(tmp_path / "x.npz", {"about": np.frombuffer(about, np.uint8)})
    with pytest.raises(LogitsFileError, match="no reference of `flexref logits`"):
        compared(str(path), reference)


def test_pipes_and_folders_are_refused(reference: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(StorageError, match=f"{path}: cannot be read: "):
            ArraysFile(path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"older")

    def fail() -> None:
        with ArraysWriter(path) as out, out.array("a", (4,), "float32") as write:
            write(np.zeros(2))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"older"
    assert [found.name for found in tmp_path.iterdir()] == ["x.npz"]


def test_what_is_no_regular_file_is_written_to_and_a_files_rights_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.touch(0o600)
    path.chmod(0o604)
    for target in (path, Path("/dev/null")):
        with ArraysWriter(target) as out:
            out.whole("a", np.zeros(3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert np.load(path)["a"].tolist() == [0, 0, 0]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_that_the_disk_has_no_room_for_is_refused_before_anything_is_computed(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(open_weight_file(Path(reference).parent / "model.h5"), [[1] * 8] * 10, [0] * 10)
    free = shutil._ntuple_diskusage(1, 1, 61 * 80 * 16 - 1)  # type: ignore[attr-defined]
    told: list[int] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(StorageError, match=r"it will have 76.25 KiB, 76.25 KiB are free there"):
        write_reference(tmp_path / "x.npz", job, [None] * 10, ("float32", "float16"), told.append)
    assert told == []


def test_progress_comes_as_often_as_is_said(tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexref.check.logits.BLOCK_BYTES", 1)
    job = Job(open_weight_file(Path(reference).parent / "model.h5"), ROWS, [2, 0])
    told: list[int] = []
    write_reference(tmp_path / "x.npz", job, [None] * 2, ("float32", "float16"), told.append)
    assert sum(told) == stage_count(job, ("float32", "float16")) == 2 * 2 * 4 + 5 * 3


def test_the_typical_share_is_told_beside_the_worst(reference: str, tmp_path: Path) -> None:
    arrays = right(reference)
    with np.load(reference) as held:
        arrays["logits_0"] += 0.25 * held["bound_float32_0"]
    found = compared(reference, saved(tmp_path / "x.npz", arrays))
    assert found.within
    assert [row.rms_share for row in found.rows] == [pytest.approx(0.25), 0]
    arrays["logits_0"][0, 0] = np.inf
    assert compared(reference, saved(tmp_path / "x.npz", arrays)).rows[0].to_json()["rms_share"] is None


def test_a_full_disk_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(flexref.files.NewFile, "publish", refuse)
    with (
        pytest.raises(StorageError, match=r"cannot write .*/x.npz: No space left on device"),
        ArraysWriter(tmp_path / "x.npz") as out,
    ):
        out.whole("a", np.zeros(3))
    assert list(tmp_path.iterdir()) == []
