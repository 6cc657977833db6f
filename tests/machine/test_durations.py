"""Durations: those of arrays are those of single sizes, and what a machine does not know is refused."""

from dataclasses import replace

import numpy as np
import pytest

from flexref.errors import PolicyError
from flexref.machine.arrays import numbers
from flexref.machine.durations import Durations
from flexref.machine.plain import plain_machine

MACHINE = plain_machine()
DURATIONS = Durations(MACHINE)
CURVES = tuple(MACHINE.decode_attention.items())


def test_calls_over_arrays_take_what_single_calls_take() -> None:
    linear = DURATIONS.linear(numbers([7, 0, 5000]), 300, 200, "int4")
    assert linear == pytest.approx([DURATIONS.linear(tokens, 300, 200, "int4") for tokens in (7, 0, 5000)])
    assert DURATIONS.append("host", "none", numbers(5e5)) == pytest.approx(DURATIONS.append("host", "none", 500_000))
    where = ("device", "none", 64)
    one = DURATIONS.attend(where, 4, 512, [(8, 1)])
    assert DURATIONS.attend_records(where, numbers([9 * 512.0])) == pytest.approx([one])
    one = DURATIONS.attend(where, 4, 512, [(0, 8)])
    assert DURATIONS.attend_pairs(where, numbers([4 * 256 * 36.0])) == pytest.approx([one])
    assert DURATIONS.expand(numbers([1e5]), "int4") == pytest.approx([DURATIONS.expand(100_000, "int4")])
    assert DURATIONS.copy("disk->host", numbers([1e5, 9.0])) == pytest.approx(
        [DURATIONS.copy("disk->host", 1e5), DURATIONS.copy("disk->host", 9.0)]
    )


def test_a_single_size_stays_a_float_and_an_array_an_array() -> None:
    assert type(DURATIONS.operator("assign", 1 << 20)) is float
    assert isinstance(DURATIONS.operator("assign", numbers([1 << 20])), np.ndarray)


def test_a_matrix_that_is_stored_as_it_is_computed_is_copied() -> None:
    assert MACHINE.port.compute_dtype == "float32"
    assert DURATIONS.expand(1000, "float32") == DURATIONS.operator("assign", 4000)


def test_what_a_machine_does_not_know_is_named() -> None:
    for tokens in (7.0, numbers([7.0])):
        with pytest.raises(PolicyError, match="no products with int3"):
            DURATIONS.linear(tokens, 300, 200, "int3")
    for nbytes in (1.0, numbers([1.0])):
        with pytest.raises(PolicyError, match="no operator 'sing'"):
            DURATIONS.operator("sing", nbytes)


def test_eight_bit_weights_that_were_not_measured_are_expanded_and_multiplied() -> None:
    dense = DURATIONS.linear(7, 300, 200, MACHINE.port.compute_dtype)
    one, many = DURATIONS.linear(7, 300, 200, "int8"), DURATIONS.linear(numbers([7.0]), 300, 200, "int8")
    assert one == pytest.approx(DURATIONS.expand(300 * 200, "int8") + dense)
    assert many == pytest.approx([one])
    assert many > dense


def test_where_device_and_host_are_one_memory_nothing_is_faster_on_the_host() -> None:
    """Whatever was measured: a moment of noise on the device must not move a cache."""
    noisy = MACHINE.changed(
        decode_attention={key: curve.scaled(9 if "device" in key else 1) for key, curve in CURVES},
        prefill_attention={key: curve.scaled(9 if "device" in key else 1) for key, curve in CURVES},
        operators={key: curve.scaled(1 if "host" in key else 9) for key, curve in MACHINE.operators.items()},
    )
    one = Durations(noisy.changed(port=replace(noisy.port, one_memory=True)))
    device, host = ("device", "none", 64), ("host", "none", 64)
    for size in (5e3, numbers([5e3, 1e7])):
        assert np.all(one.attend_records(host, size) == one.attend_records(device, size))
        assert np.all(one.attend_pairs(host, size) == one.attend_pairs(device, size))
        assert np.all(one.append("host", "int4", size) == one.append("device", "int4", size))
        assert np.all(Durations(noisy).attend_records(host, size) < one.attend_records(host, size))
    slower = MACHINE.changed(
        decode_attention={key: curve.scaled(9 if "host" in key else 1) for key, curve in CURVES},
        port=replace(MACHINE.port, one_memory=True),
    )
    on_device = Durations(slower).attend_records(device, 5e3)
    assert Durations(slower).attend_records(host, 5e3) == pytest.approx(9 * on_device)
