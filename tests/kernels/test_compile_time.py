"""What the CUDA port spends on compiling is told while it grows, and each kernel is compiled once."""

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend

from flexref.backend.compiling import compile_time
from flexref.loading import load
from flexref.policy import Policy

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)


def test_a_job_that_compiles_says_so_and_the_next_has_nothing_to_compile() -> None:
    port = CupyBackend(cuda=EmulatedCuda(capability=(9, 0), multiprocessors=8))
    before_s = compile_time(port).seconds
    with load("demo", policy=Policy(), backend=port) as engine:
        first, second = (engine.generate([[5]], max_new_tokens=1).stats for _ in range(2))
    grown_s = compile_time(port).seconds - before_s
    assert first.wall_parts_s["compile"] == pytest.approx(grown_s, abs=1e-6)
    assert grown_s > 0
    assert second.wall_parts_s["compile"] == 0
