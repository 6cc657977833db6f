"""Every kernel of the CUDA port compiles for every architecture and keeps within its registers; it needs no device."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flexref_cupy.driver import kernel_source
from flexref_cupy.driver.kernel_source import Source
from flexref_cupy.driver.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PROFILE_VARIABLE = "FLEXREF_HYPOTHESIS_PROFILE"
SCRIPT = ROOT / "tools" / "compile_kernels"
BROKEN = Source("broken", 'extern "C" __global__ void broken(float* out) {\n    out[0] = nothing_such;\n}', (), {})
CROWDED = Source(
    "crowded",
    """extern "C" __global__ void __launch_bounds__(1024) crowded(float* x) {
    float held[128];
    #pragma unroll
    for (int place = 0; place < 128; ++place) held[place] = x[place * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int place = 0; place < 128; ++place) x[place * 1024 + threadIdx.x] = held[place] * held[127 - place];
}""",
    (),
    {},
)


def script() -> Any:
    """`tools/compile_kernels` as a module."""
    loader = SourceFileLoader("compile_kernels", str(SCRIPT))
    spec = spec_from_loader("compile_kernels", loader)
    assert spec is not None
    module = sys.modules["compile_kernels"] = module_from_spec(spec)
    loader.exec_module(module)
    return module


TOOL = script()


def why_not() -> str | None:
    """Why nothing can be compiled here, if it cannot."""
    try:
        TOOL.nvrtc()
    except TOOL.CompilerError as error:
        return str(error)
    return None


needs_nvrtc = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_every_operator_with_kernels_has_variants() -> None:
    assert set(kernel_source.operators()) == set(VARIANTS)
    assert len(TOOL.sources()) == sum(map(len, VARIANTS.values()))


def to_compile(operator: str, architecture: str) -> Iterator[Source]:
    """The texts that are not on the list, and one that is, another one for each architecture.

    With the same text, options and compiler the same comes out: what is on the list is compiled in thorough runs alone.
    """
    texts = TOOL.sources((operator,))
    known = TOOL.kept(TOOL.KEPT) if os.environ.get(PROFILE_VARIABLE, "quick") == "quick" else set()
    sample = sorted(map(TOOL.listed, texts))[TOOL.ARCHITECTURES.index(architecture) % len(texts)]
    return (text for text in texts if TOOL.listed(text) not in known - {sample})


@needs_nvrtc
@pytest.mark.parametrize("architecture", TOOL.ARCHITECTURES)
@pytest.mark.parametrize("operator", sorted(VARIANTS))
def test_kernels_compile_and_spill_no_registers(operator: str, architecture: str) -> None:
    texts = list(to_compile(operator, architecture))
    assert texts
    for text in texts:
        assert TOOL.problem(TOOL.compiled(text, architecture)) is None


def test_the_list_is_up_to_date() -> None:
    """An older one makes no run wrong and every run longer: a skip is told at its end."""
    texts = list(map(TOOL.listed, TOOL.sources()))
    first, *lines = TOOL.KEPT.read_text("utf-8").splitlines()
    held = (ROOT / "tools" / "constraints.txt").read_text("utf-8").splitlines()
    name, number = first.split()
    if f"nvidia-cuda-nvrtc=={number}" not in held or lines != texts:
        pytest.skip("compiled.txt is of other kernels, which every run compiles: tools/compile_kernels --keep")
    assert name == "NVRTC"


def test_a_line_of_the_list_is_of_all_that_the_compiler_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TOOL.sources(("expand",))[0]
    others = [replace(text, text=text.text + " "), replace(text, macros=(("STORED", "int"),))]
    lines = {TOOL.listed(text), *map(TOOL.listed, others)}
    monkeypatch.setattr(TOOL, "ARCHITECTURES", ("sm_80",))
    assert len(lines | {TOOL.listed(text)}) == 4


@needs_nvrtc
def test_only_what_compiles_and_spills_nothing_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    compiled, path = TOOL.compiled, tmp_path / "compiled.txt"
    good = TOOL.sources(("expand",))[:1]
    monkeypatch.setattr(TOOL, "compiled", lambda text, *to: calls.append((text.operator, *to)) or compiled(text, *to))
    monkeypatch.setattr(TOOL, "sources", lambda: (*good, CROWDED, BROKEN))
    wrong = TOOL.keep(path)
    assert [what.partition(" ")[0] for what in wrong] == ["crowded"] * 3 + ["broken"] * 3
    assert path.read_text("utf-8").splitlines() == [TOOL.compiler_line(), TOOL.listed(good[0])]
    assert sorted(calls) == sorted((name, to) for name in ("expand", "crowded", "broken") for to in TOOL.ARCHITECTURES)
    calls.clear()
    assert len(TOOL.keep(path)) == 6
    assert {name for name, _ in calls} == {"crowded", "broken"}
    path.write_text(path.read_text("utf-8").replace("NVRTC ", "NVRTC 0"), encoding="utf-8")
    assert TOOL.kept(path) == set()


@needs_nvrtc
def test_the_table_has_a_line_for_every_kernel() -> None:
    run = CliRunner().invoke(TOOL.main, ["--only", "expand", "--arch", "sm_75"])
    head, *lines = run.output.splitlines()
    assert run.exit_code == 0
    assert head.split() == ["operator", "macros", "arch", "bytes", "kernel", "registers", "shared", "local", "spilled"]
    assert len(lines) == len(VARIANTS["expand"]) * len(TOOL.sources(("expand",))[0].signatures)


@needs_nvrtc
def test_a_kernel_with_an_error_fails_with_the_compilers_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOOL, "sources", lambda only: (BROKEN,))
    run = CliRunner().invoke(TOOL.main, ["--arch", "sm_80"])
    assert run.exit_code == 1
    assert "error: broken sm_80: NVRTC_ERROR_COMPILATION" in run.output
    assert 'broken.cu(2): error: identifier "nothing_such" is undefined' in run.output


@needs_nvrtc
def test_spills_are_seen() -> None:
    (figures,) = TOOL.compiled(CROWDED, "sm_80").figures
    assert figures.spilled_bytes > 0


@needs_nvrtc
@pytest.mark.parametrize(
    ("arguments", "message"), [(["--only", "nothing"], "nothing: no .cu file"), (["--arch", "sm_1"], "sm_1")]
)
def test_what_is_not_known_is_refused(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(TOOL.main, [*arguments, *([] if "--only" in arguments else ["--only", "expand"])])
    assert run.exit_code == 1
    assert message in run.output
