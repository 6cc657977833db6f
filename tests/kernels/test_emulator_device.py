"""The emulated device in place of the real one: its methods, memory, products, streams at once and late."""

import inspect
import re
from collections.abc import Iterator

import numpy as np
import pytest
from emulated_bench import NO_COMPILER, KernelBench, Values
from emulated_cuda import EmulatedCuda, EmulationError, compiler_is_here
from flexref_cupy.driver.cuda import Cuda

from flexref.errors import CapacityError

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

RNG = np.random.default_rng(7)


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    made = KernelBench()
    yield made
    made.close()


def test_it_has_the_methods_and_attributes_of_the_real_one() -> None:
    for name, method in inspect.getmembers(Cuda, inspect.isfunction):
        if not name.startswith("_"):
            own = inspect.signature(getattr(EmulatedCuda, name))
            assert list(own.parameters) == list(inspect.signature(method).parameters), name
    attributes = set(re.findall(r"self\.([a-z]\w*) = ", inspect.getsource(Cuda.__init__)))
    attributes |= set(re.findall(r"self\.([a-z]\w*), ", inspect.getsource(Cuda.__init__)))
    assert attributes <= set(vars(EmulatedCuda()))


# Memory, copies, products


def test_fresh_memory_is_nan_and_has_no_neighbours(bench: KernelBench) -> None:
    address = bench.cuda.allocate(1000)
    assert address % 256 == 0
    assert np.isnan(bench.get(address, (250,), "float32")).all()
    with pytest.raises(EmulationError, match="beyond an allocation"):
        bench.get(address, (251,), "float32")
    bench.cuda.free(address)
    with pytest.raises(EmulationError, match="4 bytes are written at"):
        bench.start("float* out", "out[0] = 1;", address)


def test_memory_is_counted() -> None:
    cuda = EmulatedCuda(memory_bytes=1 << 20)
    address = cuda.allocate(1 << 19)
    assert cuda.memory() == (1 << 19, 1 << 20)
    with pytest.raises(CapacityError):
        cuda.allocate((1 << 19) + 1)
    cuda.free(address)
    assert cuda.memory() == (1 << 20, 1 << 20)


@pytest.mark.parametrize("out_type", ["float16", "float32"])
@pytest.mark.parametrize("add", [False, True])
def test_products_are_those_of_their_operands(bench: KernelBench, out_type: str, add: bool) -> None:
    x, w, base = RNG.standard_normal((5, 40)), RNG.standard_normal((9, 48)), RNG.standard_normal((5, 16))
    x, w, base = x.astype(np.float16), w.astype(np.float16), base.astype(out_type)
    out = bench.put(base)
    bench.cuda.multiply((5, 9, 40), (bench.put(x), 40), (bench.put(w), 48), (out, 16, out_type), add)
    found = bench.get(out, (5, 16), out_type)
    expected = x.astype(np.float64) @ w[:, :40].astype(np.float64).T + add * base[:, :9]
    np.testing.assert_allclose(found[:, :9], expected, rtol=1e-3 if out_type == "float16" else 1e-6, atol=2e-3)
    np.testing.assert_array_equal(found[:, 9:], base[:, 9:])
    with pytest.raises(EmulationError, match="a product with"):
        bench.cuda.multiply((5, 9, 49), (bench.put(x), 49), (bench.put(w), 49), (out, 16, out_type), add)


# Streams


def bytes_at(values: Values) -> int:
    return int(values.ctypes.data)


def test_late_work_is_done_when_it_is_waited_for() -> None:
    cuda = EmulatedCuda(late=True)
    device, source, target = cuda.allocate(4), np.array([1], np.int32), np.zeros(1, np.int32)
    cuda.pin(bytes_at(source), 4)
    cuda.pin(bytes_at(target), 4)
    to, back = cuda.stream(), cuda.stream()
    copied, returned = cuda.event(), cuda.event()
    cuda.copy(device, bytes_at(source), 4, to)
    cuda.record(copied, to)
    source[0] = 2  # too early: the copy has not been waited for
    cuda.let_wait(back, copied)
    cuda.copy(bytes_at(target), device, 4, back)
    cuda.record(returned, back)
    assert target[0] == 0
    cuda.await_event(returned)
    assert target[0] == 2
    assert cuda.happened(copied)
    assert cuda.seconds_between(copied, returned) >= 0


def test_late_work_that_waits_for_nobody_comes_too_early() -> None:
    cuda = EmulatedCuda(late=True)
    device, target = cuda.allocate(4), np.zeros(1, np.int32)
    cuda.pin(bytes_at(target), 4)
    to, back = cuda.stream(), cuda.stream()
    cuda.copy(device, bytes_at(np.array([1], np.int32)), 4, to)
    cuda.copy(bytes_at(target), device, 4, back)
    cuda.await_stream(back)
    assert target[0] == -1  # what fresh memory holds


def test_asking_again_and_again_comes_to_an_end() -> None:
    cuda = EmulatedCuda(late=True)
    device, values = cuda.allocate(4), np.zeros(1, np.int32)
    event = cuda.event()
    assert cuda.happened(event)
    for _ in range(5):
        cuda.copy(device, bytes_at(values), 4, cuda.compute_stream)
    cuda.record(event, cuda.compute_stream)
    assert sum(not cuda.happened(event) for _ in range(20)) == 5


def test_memory_is_given_back_after_the_work_that_uses_it() -> None:
    cuda = EmulatedCuda(late=True)
    device, target = cuda.allocate(4), np.zeros(1, np.int32)
    cuda.pin(bytes_at(target), 4)
    cuda.copy(bytes_at(target), device, 4, cuda.compute_stream)
    cuda.free(device)
    assert target[0] == -1
