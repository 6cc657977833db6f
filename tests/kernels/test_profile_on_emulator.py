"""A profile of the CUDA port without a device: all that it asks of the port works, late as the device may be."""

from pathlib import Path

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend

from flexref.machine.machine import Machine
from flexref.profile.measure import measure_machine
from flexref.profile.sizes import Sizes

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)


@pytest.mark.parametrize("late", [False, True])
def test_a_profile_of_the_port_is_a_machine(late: bool, tmp_path: Path) -> None:
    port = CupyBackend(cuda=EmulatedCuda(capability=(9, 0), multiprocessors=8, late=late))
    try:
        machine = measure_machine(port, tmp_path, sizes=Sizes.tiny())
    finally:
        port.close()
    assert machine.port.compute_dtype == "float16"
    assert machine.port.asynchronous == late
    assert set(machine.products) == {"float16", "int4", "int8"}
    assert set(machine.expansions) == {"int4", "int8"}
    places = {"device", "host"} if port.caps.attends_on_host else {"device"}
    assert {key.split()[0] for key in machine.decode_attention} == places
    machine.write(tmp_path / "machine.json")
    assert Machine.read(tmp_path / "machine.json") == machine
