"""The emulated device tells of kernels that do what CUDA does not allow, or whose results would be left to chance."""

from collections.abc import Iterator

import numpy as np
import pytest
from emulated_bench import COMMON, NO_COMPILER, KernelBench
from emulated_build import portable
from emulated_cuda import EmulationError, compiler_is_here

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    made = KernelBench()
    yield made
    made.close()


WRONG = {
    "a missing barrier": (
        "__shared__ float x[64];\nx[threadIdx.x] = 1;\nout[threadIdx.x] = x[63 - threadIdx.x];",
        r"shared memory is .* with no barrier since another thread .*\(tried.cu:[34]\)",
    ),
    "a missing barrier of a warp": (
        "__shared__ float x[64];\nx[threadIdx.x] = 1;\nout[threadIdx.x] = x[threadIdx.x ^ 1];",
        r"no barrier since another thread",
    ),
    "a missing barrier before memory is used again": (
        "__shared__ float x[64];\nx[threadIdx.x] = 1;\n__syncthreads();\n"
        "out[threadIdx.x] = x[63 - threadIdx.x] + x[0];\n"
        "if (threadIdx.x == 0) x[0] = 2;",
        r"(written with no barrier since another thread read it|read with no barrier since another thread wrote it)",
    ),
    "a barrier of warps where one of the block is needed": (
        "__shared__ float x[64];\nx[threadIdx.x] = 1;\n__syncwarp();\nout[threadIdx.x] = x[63 - threadIdx.x];",
        r"no barrier since another thread",
    ),
    "two threads that write one place": ("__shared__ int x;\nx = threadIdx.x;", r"two threads write the same"),
    "a barrier that some threads never reach": (
        "if (threadIdx.x < 32)\n__syncthreads();",
        r"waits at __syncthreads of tried.cu:3, where thread 32 never comes: it is at its end",
    ),
    "barriers at two places": (
        "if (threadIdx.x < 32)\n__syncthreads();\nelse\n__syncthreads();",
        r"__syncthreads of tried.cu:[35], where thread \d+ never comes: it is at tried.cu:[35]",
    ),
    "a shuffle that a lane never reaches": (
        "if (threadIdx.x != 3)\n__shfl_xor_sync(EVERY_LANE, 1, 1);",
        r"thread \d+: waits at __shfl_..._sync of tried.cu:3 for thread 3, which has returned",
    ),
    "a shuffle beside a barrier": (
        "if (threadIdx.x < 3)\n__shfl_xor_sync(EVERY_LANE, 1, 1);\nelse\n__syncthreads();",
        r"waits at __shfl_..._sync of tried.cu:3 for thread \d+, which waits at __syncthreads of tried.cu:5",
    ),
    "a shuffle from a lane that takes no part": (
        "if (threadIdx.x < 16)\n__shfl_down_sync(0xffffu, 1, 8);",
        r"lane 8 takes a value from lane 16, which takes no part",
    ),
    "reading before the copy is awaited": (
        "__shared__ uint4 x[64];\ncopy_beside(x + threadIdx.x, a);\nclose_batch();\nout[0] = x[threadIdx.x].x;",
        r"copy_beside still fills what is accessed \(no await_batches\)",
    ),
    "reading what another thread copied, with no barrier": (
        "__shared__ uint4 x[64];\ncopy_beside(x + threadIdx.x, a);\nclose_batch();\nawait_batches<0>();\n"
        "out[threadIdx.x] = x[63 - threadIdx.x].x;",
        r"copy_beside still fills|no barrier since another thread",
    ),
    "awaiting too few batches": (
        "__shared__ uint4 x[64];\ncopy_beside(x + threadIdx.x, a);\nclose_batch();\nawait_batches<1>();\n"
        "out[threadIdx.x] = x[threadIdx.x].x;",
        r"copy_beside still fills",
    ),
    "a copy that nobody awaits": (
        "__shared__ uint4 x[64];\ncopy_beside(x + threadIdx.x, a);\nclose_batch();",
        r"returns while 1 copies of copy_beside are under way",
    ),
    "a copy from a crooked address": (
        "__shared__ uint4 x[64];\ncopy_beside(x + threadIdx.x, (const char*)a + 8);",
        r"copy_beside reads at 0x\w+8, no multiple of 16 \(tried.cu:3\)",
    ),
    "a short copy from a crooked address": (
        "__shared__ uint2 x[64];\nBeside<8> one;\none.start(x + threadIdx.x, (const char*)a + 4, true);",
        r"copy_beside reads at 0x\w+4, no multiple of 8 \(tried.cu:4\)",
    ),
    "reading before a short copy is awaited": (
        "__shared__ uint2 x[64];\nBeside<4> one;\none.start(&x[threadIdx.x].y, a, true);\nclose_batch();\n"
        "out[0] = x[threadIdx.x].y;",
        r"copy_beside still fills what is accessed \(no await_batches\)",
    ),
    "a write past the end": ("out[threadIdx.x + 1] = 1;", r"4 bytes are written at byte 256 of an allocation of 256"),
    "a write before the start": ("out[-1] = 1;", r"thread \d+: 4 bytes are written at "),
    "a read past the end": (
        "out[0] = a[threadIdx.x].w;",
        r"4 bytes are read at byte \d+ of an allocation of 512 \(tried.cu:2\)",
    ),
    "a read of no memory": (
        "out[0] = *(float*)(threadIdx.x * 2 + 1);",
        r"thread \d+: 0x\w+ is accessed as a type of alignment 4",
    ),
    "a crooked vector": ("*(float4*)(out + 1) = make_float4(0, 0, 0, 0);", r"a type of alignment 16 \(tried.cu:2\)"),
    "an element that an array has not": (
        "float x[4] = {};\nx[threadIdx.x % 8] = 1;\nout[0] = x[1];",
        r"element \d of an array that has none such \(tried.cu:3\)",
    ),
    "dynamic shared memory past its end": (
        "DYNAMIC_SHARED(bytes);\nbytes[threadIdx.x + 1] = 1;",
        r"thread 63: 1 bytes are written at ",
    ),
    "a division by zero": ("out[0] = 7 / (int)(threadIdx.x - 5);", r"thread \d+: an integer is divided by 0"),
    "an endless descent": (
        "struct Deep { static float sink(float* x, int n) { float y[64]; y[n % 64] = n; return n < 0 ? y[1] : "
        "sink(y, n + 1) + y[n % 32]; } };\nout[0] = Deep::sink(out, (int)a[0].x);",
        r"its stack is full",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_it_tells_of(mistake: str, bench: KernelBench) -> None:
    body, message = WRONG[mistake]
    out, a = bench.put(np.zeros(64, np.float32)), bench.put(np.zeros(128, np.uint32))
    with pytest.raises(EmulationError, match=message):
        bench.start("float* out, const uint4* a", body, out, a, threads=64, shared_bytes=64)
    bench.start("float* out, const uint4* a", "out[threadIdx.x] = 1;", out, a, threads=64)
    assert (bench.get(out, (64,), "float32") == 1).all()


def test_text_that_does_not_compile_is_told_with_its_line(bench: KernelBench) -> None:
    with pytest.raises(EmulationError, match=r"tried.cu:3.*nothing_such"):
        bench.start("float* out", "out[0] = 1;\nnothing_such(out);", 0)


def test_what_is_for_devices_alone_is_replaced_or_refused() -> None:
    common, _ = portable(COMMON)
    assert "asm" not in common
    assert len(common.splitlines()) == len(COMMON.splitlines())
    with pytest.raises(EmulationError, match="other_thing is for devices alone"):
        portable(f'{COMMON}\nvoid other_thing() {{\n    asm("exit;");\n}}\n')


def test_launches_beyond_the_limits_are_refused(bench: KernelBench) -> None:
    out = bench.put(np.zeros(1, np.float32))
    for limits, message in (
        ({"threads": 1025}, "a block of 1025 threads"),
        ({"blocks": 0}, "a grid of"),
        ({"shared_bytes": 164 << 10}, "bytes of shared memory; emulated sm_80 has"),
    ):
        with pytest.raises(EmulationError, match=message):
            bench.start("float* out", "", out, **limits)
