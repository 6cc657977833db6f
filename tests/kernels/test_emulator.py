"""The emulated device computes what CUDA's does: numbers, collectives of warps and blocks, shared memory."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from emulated_bench import NO_COMPILER, KernelBench
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy.driver import kernel_source
from flexref_cupy.driver.variants import VARIANTS

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

RNG = np.random.default_rng(7)


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    made = KernelBench()
    yield made
    made.close()


# Numbers


def test_every_half_becomes_its_float(bench: KernelBench) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    found = bench.map("out[n] = __float_as_uint(to_float(half{a[n]}));", halves, out="uint32").view(np.float32)
    np.testing.assert_array_equal(found, halves.view(np.float16).astype(np.float32))


def test_every_float_becomes_the_nearest_half(bench: KernelBench) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    edges = np.array([0, 65519.99, 65520, 65536, 1e30, np.inf, np.nan, 2**-25, 2**-26, 1e-45], np.float32)
    some = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9)), edges])
    some = np.concatenate([some, -some])
    with np.errstate(over="ignore"):
        expected = some.astype(np.float16)
    found = bench.map("out[n] = to_half(__uint_as_float(a[n])).bits;", some.view(np.uint32), out="uint16")
    np.testing.assert_array_equal(found[~np.isnan(some)], expected.view(np.uint16)[~np.isnan(some)])
    assert set(found[np.isnan(some)]) == {0x7FFF}


def nearest(value: Fraction) -> float:
    """The half that is nearest to a value, of two the even one; found without rounding to anything between."""
    grid = Fraction(2) ** max(-24, abs(value).numerator.bit_length() - abs(value).denominator.bit_length() - 12)
    while abs(value) / grid >= 2048:
        grid *= 2
    steps = round(value / grid)  # to even
    return float(steps * grid)


def test_pairs_are_rounded_once(bench: KernelBench) -> None:
    bits = RNG.integers(0, 1 << 16, (3, 2, 4000)).astype(np.uint16)
    bits[:, :, :2000] &= 0x83FF  # many of these are subnormal
    bits[2, :, 1000:3000] |= 0x3C00
    bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    a, b, c = (np.ascontiguousarray(part.T).view(np.uint32)[:, 0] for part in bits)
    x, y, z = (part.T.copy().view(np.float16) for part in bits)
    for name, body in (("subtract", "subtract(a[n], b[n])"), ("multiply_add", "multiply_add(a[n], b[n], c[n])")):
        found = bench.map(f"out[n] = {body};", a, b, c, out="uint32").view(np.float16).reshape(-1, 2)
        for u, v, w, result in zip(*(part.ravel().tolist() for part in (x, y, z, found)), strict=True):
            exact = Fraction(u) - Fraction(v) if name == "subtract" else Fraction(u) * Fraction(v) + Fraction(w)
            expected = nearest(exact)
            expected = float("inf") * (1 if exact > 0 else -1) if abs(expected) >= 65520 else expected
            assert result == expected, (name, u, v, w)


def test_bytes_are_chosen_by_nibbles(bench: KernelBench) -> None:
    a, b, c = RNG.integers(0, 1 << 32, (3, 500), np.uint64).astype(np.uint32)
    found = bench.map("out[n] = permute_bytes(a[n], b[n], c[n] & 0x7777u);", a, b, c, out="uint32")
    for low, high, selector, result in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist(), strict=True):
        both = low.to_bytes(4, "little") + high.to_bytes(4, "little")
        assert result.to_bytes(4, "little") == bytes(both[selector >> 4 * place & 7] for place in range(4))


# Warps and blocks


def test_tiles_are_multiplied(bench: KernelBench) -> None:
    a, b, c = (RNG.integers(-8, 9, shape) for shape in ((16, 16), (16, 8), (16, 8)))
    body = """
    const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
    pair left[4], right[2];
    for (int part = 0; part < 4; ++part) {
        const half* from = a + (row + part % 2 * 8) * 16 + column + part / 2 * 8;
        left[part] = to_pair(from[0], from[1]);
    }
    for (int part = 0; part < 2; ++part)
        right[part] = to_pair(b[(column + part * 8) * 8 + row], b[(column + part * 8 + 1) * 8 + row]);
    float sums[4] = {c[row * 8 + column], c[row * 8 + column + 1], c[row * 8 + 64 + column], c[row * 8 + 65 + column]};
    multiply_tiles(sums, left, right);
    for (int part = 0; part < 4; ++part) c[(row + part / 2 * 8) * 8 + column + part % 2] = sums[part];"""
    sums = bench.put(c.astype(np.float32))
    halves = (bench.put(part.astype(np.float16)) for part in (a, b))
    bench.start("const half* a, const half* b, float* c", body, *halves, sums)
    np.testing.assert_array_equal(bench.get(sums, (16, 8), "float32"), a @ b + c)


@pytest.mark.parametrize("how", ["", "_transposed"])
def test_matrices_are_handed_out(bench: KernelBench, how: str) -> None:
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    body = f"""
    __shared__ alignas(16) unsigned short rows[32][8];
    for (int column = 0; column < 8; ++column) rows[threadIdx.x][column] = a[threadIdx.x * 8 + column];
    __syncwarp();
    pair result[4];
    load_matrices{how}(result, rows[threadIdx.x]);
    for (int number = 0; number < 4; ++number) out[threadIdx.x * 4 + number] = result[number];"""
    out = bench.put(np.zeros((32, 4), np.uint32))
    bench.start("const unsigned short* a, unsigned* out", body, bench.put(matrices), out)
    found = bench.get(out, (32, 4), "uint32").view(np.uint16).reshape(8, 4, 4, 2)  # row, column / 2, matrix, half
    expected = matrices.transpose(0, 2, 1) if how else matrices
    np.testing.assert_array_equal(found.transpose(2, 0, 1, 3).reshape(4, 8, 8), expected)


@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_take_from_other_lanes(bench: KernelBench, width: int) -> None:
    lane = np.arange(32)
    first, place = lane // width * width, lane % width
    sources = {
        "__shfl_sync": first + (lane * 5 + 3) % width,
        "__shfl_up_sync": np.where(place >= 3, lane - 3, lane),
        "__shfl_down_sync": np.where(place + 3 < width, lane + 3, lane),
        "__shfl_xor_sync": lane ^ 5,
    }
    for name, source in sources.items():
        argument = f"(int)threadIdx.x * 5 + 3 + {width}" if name == "__shfl_sync" else "5" if "xor" in name else "3"
        out = bench.put(np.zeros(32))
        bench.start(
            "double* out", f"out[threadIdx.x] = {name}(EVERY_LANE, threadIdx.x + 0.5, {argument}, {width});", out
        )
        np.testing.assert_array_equal(bench.get(out, (32,), "float64"), source + 0.5, name)


def test_sums_and_votes_are_those_of_a_warp_or_block(bench: KernelBench) -> None:
    body = """
    const int t = threadIdx.x;
    out[t] = warp_sum(t) + 1000 * warp_max(-t);
    out[64 + t] = __ballot_sync(EVERY_LANE, t % 3 == 0) == (t < 32 ? 0x49249249u : 0x92492492u);
    out[128 + t] = 2 * __any_sync(EVERY_LANE, t == 40) + __all_sync(EVERY_LANE, t < 32);
    out[192 + t] = 4 * __syncthreads_count(t < 10) + 2 * __syncthreads_or(t == 63) + __syncthreads_and(t < 63);"""
    out = bench.put(np.zeros((4, 64), np.float32))
    bench.start("float* out", body, out, threads=64)
    warps = np.arange(64) // 32
    expected = [np.where(warps, 1520 - 32000, 496), np.ones(64), np.where(warps, 2, 1), np.full(64, 42)]
    np.testing.assert_array_equal(bench.get(out, (4, 64), "float32"), expected)


def test_threads_of_a_block_share_memory_and_the_last_block_sees_all(bench: KernelBench) -> None:
    body = """
    DYNAMIC_SHARED(bytes);
    integer* numbers = (integer*)bytes;
    __shared__ bool is_last;
    numbers[threadIdx.x] = blockIdx.x * blockDim.x + threadIdx.x;
    __syncthreads();
    integer sum = 0;
    for (int other = 0; other < blockDim.x; ++other) sum += numbers[other];
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 0)
        for (int block = 0; block < gridDim.x; ++block) out[gridDim.x] += out[block];"""
    out, counter = bench.put(np.zeros(8, np.int64)), bench.put(np.zeros(1, np.uint32))
    for _ in range(2):
        bench.start("integer* out, unsigned* counter", body, out, counter, blocks=7, threads=96, shared_bytes=96 * 8)
    sums = np.arange(7 * 96).reshape(7, 96).sum(1)
    np.testing.assert_array_equal(bench.get(out, (8,), "int64"), [*sums, 2 * sums.sum()])
    assert bench.get(counter, (1,), "uint32") == [0]


def test_copies_arrive_with_their_batch(bench: KernelBench) -> None:
    body = """
    __shared__ uint4 rows[3][32];
    for (int batch = 0; batch < 3; ++batch) {
        copy_beside(&rows[batch][threadIdx.x], a + batch * 32 + threadIdx.x);
        close_batch();
    }
    await_batches<1>();
    out[threadIdx.x] = rows[0][threadIdx.x].x + rows[1][threadIdx.x].w;
    await_batches<0>();
    __syncwarp();
    out[threadIdx.x] += rows[2][31 - threadIdx.x].y;"""
    words = np.arange(3 * 32 * 4, dtype=np.uint32).reshape(3, 32, 4)
    out = bench.put(np.zeros(32, np.uint32))
    bench.start("const uint4* a, unsigned* out", body, bench.put(words), out)
    expected = words[0, :, 0] + words[1, :, 3] + words[2, ::-1, 1]
    np.testing.assert_array_equal(bench.get(out, (32,), "uint32"), expected)


def test_shared_memory_begins_as_nan(bench: KernelBench) -> None:
    body = """
    __shared__ float still[32];
    DYNAMIC_SHARED(bytes);
    out[threadIdx.x] = still[threadIdx.x];
    out[32 + threadIdx.x] = ((float*)bytes)[threadIdx.x];
    still[threadIdx.x] = ((float*)bytes)[threadIdx.x] = 1;"""
    out = bench.put(np.zeros(64, np.float32))
    bench.start("float* out", body, out, blocks=3, shared_bytes=128)
    assert np.isnan(bench.get(out, (64,), "float32")).all()


@pytest.mark.parametrize(
    ("operator", "objects"),
    [
        *(("add_rows", 1), ("attend_prefill", 1), ("attend_decode_halves", 1)),
        *(("attend_decode_codes", 2), ("attend_decode_few", 2)),
    ],
)
def test_a_kernel_is_compiled_twice_only_if_it_asks_whether_copies_are_made_beside(operator: str, objects: int) -> None:
    text = kernel_source.source(operator, VARIANTS[operator][0])
    devices = (EmulatedCuda(capability=capability) for capability in ((7, 5), (8, 0), (9, 0)))
    assert len({device.compile(text).path for device in devices}) == objects
