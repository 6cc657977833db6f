"""A machine as data: it comes back from JSON, nothing in a file gets past its checks, and changes do what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_tree_kit import places, replaced

from flexref.errors import PolicyError, StorageError
from flexref.machine.machine import COPIES, FORMAT, Machine, attention_key, nearest_attention
from flexref.machine.plain import plain_machine
from flexref.machine.quality import Quality
from flexref.units import TIERS

MACHINE = plain_machine().changed(
    beside={"compute": {"host->device": 1.5}},
    sources={"copies": "measured"},
    warnings=("unstable: copies",),
    quality=Quality(1.7e9, 4.5, 0.25, 0.1, 0.0, 7, 2, 1, {"sample": {"1 rows": 0.25}}),
)
OPTIONAL = ("sources", "warnings", "quality")
VALUES = MACHINE.to_mapping()

texts = st.text(max_size=6)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def read(values: object) -> Machine:
    """What a file with these values is read as."""
    return Machine.from_mapping(json.loads(json.dumps(values)), "m.json")


def test_a_machine_comes_back_from_json(tmp_path: Path) -> None:
    MACHINE.write(tmp_path / "m.json")
    assert Machine.read(tmp_path / "m.json") == MACHINE
    assert json.loads((tmp_path / "m.json").read_text())["format"] == FORMAT


@given(st.sampled_from(places(VALUES, items=1)[1:]), jsons)
def test_any_value_anywhere_is_read_or_refused_in_one_line(path: tuple[Any, ...], new: Any) -> None:
    refusal = "m.json: "
    try:
        machine = read(replaced(VALUES, path, new))
    except PolicyError as error:
        refusal = str(error)
    else:
        assert read(machine.to_mapping()) == machine
    assert refusal.startswith("m.json: ")
    assert "\n" not in refusal


@pytest.mark.parametrize("path", places(VALUES, items=1)[1:], ids=lambda path: ".".join(map(str, path)))
def test_a_list_of_nothing_is_no_value_but_of_sources_and_warnings(path: tuple[Any, ...]) -> None:
    if path == ("warnings",):
        assert read(replaced(VALUES, path, [])).warnings == ()
        return
    with pytest.raises(PolicyError):
        read(replaced(VALUES, path, [None]))


@pytest.mark.parametrize("name", [name for name in VALUES if name not in OPTIONAL])
def test_every_field_but_what_says_how_it_was_measured_is_needed(name: str) -> None:
    with pytest.raises(PolicyError, match=r"^m\.json: "):
        read({key: value for key, value in VALUES.items() if key != name})


def test_a_file_from_before_quality_was_kept_is_read() -> None:
    old = {key: value for key, value in VALUES.items() if key != "quality"}
    old["port"] = {key: value for key, value in VALUES["port"].items() if key != "one_memory"}
    assert read(old) == MACHINE.changed(quality=None)


@given(texts.filter(lambda name: name not in VALUES))
def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="unknown field"):
        read({**VALUES, name: 1})


@pytest.mark.parametrize(
    ("path", "new", "says"),
    [
        (("capacity_bytes",), {"device": 1, "host": 1}, "lacks 'disk'"),
        (("copies",), {}, "lacks 'host->device'"),
        (("products",), {}, "no products"),
        (("capacity_bytes", "host"), -1, "capacity_bytes.host must be a whole number"),
        (("beside",), {"compute": {"host->device": 0.5}}, "beside.compute.host->device must be a number of at least 1"),
        (("beside",), {"gpu": {}}, "unknown resource 'gpu'"),
        (("port", "asynchronous"), 1, "port.asynchronous must be true or false"),
        (("host_s",), {"call": 1}, "host_s must have the fields"),
        (("decode_attention",), {"device int4": [[1, 1]]}, "named by place, scheme and head width"),
        (("decode_attention",), {"device int4 0": [[1, 1]]}, "named by place, scheme and head width"),
        (("decode_attention",), {"device int4 064": [[1, 1]]}, "named by place, scheme and head width"),
        (("decode_attention",), {"device int4 " + "9" * 5000: [[1, 1]]}, "named by place, scheme and head width"),
        (("warnings",), "unstable", "warnings must be a list"),
        (("warnings",), 3, "warnings must be a list"),
        (("name",), None, "name must be text"),
    ],
)
def test_what_is_wrong_is_said(path: tuple[str, ...], new: object, says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        read(replaced(VALUES, path, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("copies", "disk->host"), [[1.0, 1e300]]),
        (("copies", "weight file"), [[1e300, 1.0]]),
        (("operators", "layer_norm"), [[1e-300, 1.0]]),
        (("products", "int4"), [[1e300, [[1.0, 1.0]]]]),
        (("host_s", "visit"), 1e300),
        (("port", "compute_dtype"), "abacus"),
    ],
)
def test_what_no_machine_has_is_refused_before_a_plan_overflows(path: tuple[str, ...], new: object) -> None:
    """A linear program with infinite numbers, or of a type whose bytes nobody knows, ended in a traceback."""
    with pytest.raises(PolicyError, match=rf"^m.json: .*{path[-1]}.* must be "):
        read(replaced(VALUES, path, new))


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read machine"):
        Machine.read(tmp_path / "none.json")
    for content in (b"{", b"\xff", b"[" * 100_000, b"[]", b"1", b"{}"):
        (tmp_path / "m.json").write_bytes(content)
        with pytest.raises(PolicyError):
            Machine.read(tmp_path / "m.json")
    with pytest.raises(StorageError, match="cannot write machine"):
        MACHINE.write(tmp_path / "none" / "m.json")


@given(st.sampled_from(COPIES), st.floats(0, 1e12), st.floats(1, 1e12))
def test_a_faster_link_is_never_slower_and_leaves_the_others(link: str, more: float, nbytes: float) -> None:
    faster = MACHINE.with_faster_link(link, more)
    assert faster.copies[link].seconds(nbytes) <= MACHINE.copies[link].seconds(nbytes) * (1 + 1e-9)
    assert {name: faster.copies[name] for name in COPIES if name != link} == {
        name: MACHINE.copies[name] for name in COPIES if name != link
    }


@given(st.sampled_from(COPIES), st.floats(1e6, 1e12), st.sampled_from((1 << 12, 1 << 20, 1 << 28)))
def test_a_faster_link_has_so_much_more_at_every_point(link: str, more: float, nbytes: int) -> None:
    faster = MACHINE.with_faster_link(link, more)
    assert faster.copies[link].per_s(nbytes) == pytest.approx(MACHINE.copies[link].per_s(nbytes) + more, rel=1e-9)


@given(st.sampled_from(TIERS), st.integers(0, 1 << 50))
def test_another_capacity_changes_that_tier_alone(tier: str, nbytes: int) -> None:
    changed = MACHINE.with_capacity(tier, nbytes)
    assert changed.capacity_bytes == {**MACHINE.capacity_bytes, tier: nbytes}
    assert changed.changed(capacity_bytes=MACHINE.capacity_bytes) == MACHINE


def test_what_nothing_is_said_about_slows_nothing() -> None:
    assert MACHINE.slowdown("compute", "host->device") == 1.5
    assert MACHINE.slowdown("compute", "disk->host") == MACHINE.slowdown("host->device", "compute") == 1.0


def test_attention_of_an_unknown_width_is_that_of_the_nearest() -> None:
    curves = {key: object() for key in ("device int4 64", "device int4 128", "host int4 96")}
    for width, nearest in ((32, 64), (80, 64), (100, 128), (512, 128)):
        found: object = nearest_attention(curves, "device", "int4", width)  # type: ignore[arg-type]
        assert found is curves[attention_key("device", "int4", nearest)]
    with pytest.raises(PolicyError, match="no attention on device over a cache of scheme none"):
        nearest_attention(curves, "device", "none", 64)  # type: ignore[arg-type]
