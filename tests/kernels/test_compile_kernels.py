"""Every kernel of the CUDA port compiles for every architecture and keeps within its registers; it needs no device."""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from emulated_build import kept_folder
from flexref_cupy.driver import kernel_source
from flexref_cupy.driver.kernel_source import Source
from flexref_cupy.driver.variants import VARIANTS

SCRIPT = Path(__file__).parents[2] / "tools" / "compile_kernels"
BROKEN = Source("broken", 'extern "C" __global__ void broken(float* out) {\n    out[0] = nothing_such;\n}', (), {})
AT_ONCE = 12
"""Variants that one test compiles: few enough for a busy machine."""

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


def kept_figures(source: Source, architecture: str) -> tuple[Any, ...]:
    """What `TOOL.compiled` says of every kernel: found once for a text, its options and a compiler, and then kept."""
    parts = (SCRIPT.read_text("utf-8"), source.text, source.options, architecture, version("nvidia-cuda-nvrtc"))
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    path = kept_folder() / f"{source.operator}-{architecture}-{digest[:24]}.json"
    if not path.exists():
        found = TOOL.compiled(source, architecture).figures
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            whole.write_text(json.dumps([asdict(figures) for figures in found]), encoding="utf-8")
            whole.replace(path)
    return tuple(TOOL.Figures(**figures) for figures in json.loads(path.read_text("utf-8")))


def in_parts() -> Iterator[Any]:
    """Operators, each with its variants from a number on, `AT_ONCE` at most."""
    for operator, variants in sorted(VARIANTS.items()):
        for first in range(0, len(variants), AT_ONCE):
            yield pytest.param(operator, first, id=f"{operator}-{first}")


@needs_nvrtc
@pytest.mark.parametrize("architecture", TOOL.ARCHITECTURES)
@pytest.mark.parametrize(("operator", "first"), list(in_parts()))
def test_kernels_compile_and_spill_no_registers(operator: str, first: int, architecture: str) -> None:
    for source in TOOL.sources((operator,))[first : first + AT_ONCE]:
        found = kept_figures(source, architecture)
        assert {figures.kernel for figures in found} == set(source.signatures)
        for figures in found:
            what = f"{TOOL.described(source, architecture)}: {figures}"
            assert figures.spilled_bytes == 0, what
            assert 0 < figures.registers < 256, what


@needs_nvrtc
def test_figures_are_kept_of_what_compiles_and_of_that_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(TOOL.CompilerError):
        kept_figures(BROKEN, "sm_80")
    (source, *_), compiled, calls = TOOL.sources(("expand",)), TOOL.compiled, []
    monkeypatch.setattr(TOOL, "compiled", lambda *given: calls.append(given) or compiled(*given))
    first, again = (kept_figures(source, "sm_80") for _ in range(2))
    assert first == again == compiled(source, "sm_80").figures
    other = replace(source, text=source.text + "// another text")
    kept_figures(other, "sm_80")
    kept_figures(source, "sm_75")
    assert calls == [(source, "sm_80"), (other, "sm_80"), (source, "sm_75")]


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
