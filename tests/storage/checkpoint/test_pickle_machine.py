"""The pickle machine on its own: instructions of every kind build tensors or are refused, and none costs anything."""

import pickletools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import CheckpointError
from flexref.storage.checkpoint import pickle_machine
from flexref.storage.checkpoint.pickle_machine import tensors_of
from flexref.storage.checkpoint.pickle_values import PickledTensor


def test_every_module_may_be_asked_for_and_none_is_imported() -> None:
    assert "this" not in sys.modules
    with pytest.raises(CheckpointError, match=r"asks for 'this\.d'"):
        tensors_of(b"\x80\x02cthis\nd\n.", "x")
    assert "this" not in sys.modules


REFUSED = {
    "a tensor without a storage": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))tR.",
    "a tensor called with nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a dictionary of arguments": b"ccollections\nOrderedDict\n(K\x01tR.",
    "a call of a number": b"K\x01)R.",
    "a call of a storage type": b"ctorch\nFloatStorage\n)R.",
    "a state of a name": b"ctorch\nFloatStorage\n}b.",
    "an item of a name": b"ctorch\nFloatStorage\nK\x01K\x02s.",
    "an item of a list": b"]K\x01K\x02s.",
    "an append to a dictionary": b"}K\x01a.",
    "a tuple as a key": b"})K\x02s.",
    "a key without a value": b"}(K\x01u.",
    "a storage that is a number": b"K\x01Q.",
    "a storage of no type": b"(X\x07\x00\x00\x00storageK\x01X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
    "an instance": b"(iposix\nsystem\n.",
    "an object": b"(cposix\nsystem\no.",
    "a class": b"cposix\nsystem\n)\x81.",
    "an extension": b"\x82\x01.",
    "a text id": b"Pposix\n.",
    "a name of numbers": b"K\x01K\x02\x93.",
    "no end": b"}",
    "nothing": b"",
    "nothing on the stack": b".",
    "no mark": b"t.",
    "a memo that is not there": b"h\x05.",
    "a text that is cut short": b"X\xff\xff\xff\x7fabc.",
    "a text that is none": b"X\x01\x00\x00\x00\xff.",
    "a name without end": b"cposix",
    "a list": b"].",
    "a tensor alone": b"N.",
    "a short stack": b"K\x01\x87.",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_pickle_that_builds_no_tensors_is_refused(what: str) -> None:
    with pytest.raises(CheckpointError, match=r"^x: ") as raised:
        tensors_of(b"\x80\x02" + REFUSED[what], "x")
    assert "\n" not in str(raised.value)


def test_a_memo_of_any_number_and_any_depth_cost_nothing() -> None:
    deep = b"\x80\x02}X\x01\x00\x00\x00a" + b")" + b"\x85" * 500_000 + b"r\xff\xff\xff\xffs."
    assert tensors_of(deep, "x") == {}


def test_a_pickle_that_is_too_long_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "LARGEST_PICKLE_BYTES", 10)
    with pytest.raises(CheckpointError, match="its pickle has 11 bytes, at most 10 are read"):
        tensors_of(b"\x80\x02}........", "x")


@given(data=st.data())
def test_any_run_of_instructions_builds_tensors_or_is_refused(data) -> None:
    codes = [code.code.encode("latin-1") for code in pickletools.opcodes]
    words = [b"torch\nFloatStorage\n", b"collections\nOrderedDict\n", b"storage", b"\x00", b"\x01", b"\x05\x00\x00\x00"]
    pieces = data.draw(st.lists(st.sampled_from(codes + words) | st.binary(max_size=3), max_size=40))
    try:
        found = tensors_of(b"\x80\x02" + b"".join(pieces) + b".", "x")
    except CheckpointError as error:
        assert str(error).startswith("x: ")  # noqa: PT017 -- either outcome is right
    else:
        assert all(isinstance(value, PickledTensor) for value in found.values())


def test_a_pickle_that_builds_more_than_any_checkpoint_is_refused_soon() -> None:
    assert pickle_machine.LARGEST_PICKLE_BYTES <= 1 << 21
    with pytest.raises(CheckpointError, match="more than 524288 instructions"):
        tensors_of(b"}" * pickle_machine.LARGEST_PICKLE_BYTES, "x")
    with pytest.raises(CheckpointError, match="its pickle has 8388608 bytes"):
        tensors_of(b"}" * (8 << 20), "x")
