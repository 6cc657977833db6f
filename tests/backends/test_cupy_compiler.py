"""A kernel is compiled once per machine, for its device, and again when anything that it is made of has changed."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from flexref_cupy.driver import kernel_source
from flexref_cupy.driver.compiler import Compiler, Nvrtc, architecture
from flexref_cupy.driver.kernel_source import Source, source

from flexref.errors import BackendUnavailable
from flexref.machine.kept_bytes import KeptBytes
from flexref.machine.names import CACHE_VARIABLE

MOST = 1 << 20
TEXT = Source("one", 'extern "C" __global__ void one(long long x) {}', (("WIDTH", "8"),), {"one": "=q"})
CHANGED = {
    "text": Source("one", f"{TEXT.text} ", TEXT.macros, TEXT.signatures),
    "macro": Source("one", TEXT.text, (("WIDTH", "16"),), TEXT.signatures),
    "another macro": Source("one", TEXT.text, (("W", "DTH=8"),), TEXT.signatures),
}


class Counting:
    """A compiler whose programs name their number, and what they were made of."""

    def __init__(self, version: str = "13.2") -> None:
        self.version, self.calls = version, 0

    def architectures(self) -> Sequence[int]:
        return [75, 80, 90]

    def compile(self, name: str, text: str, options: Sequence[str], intermediate: bool) -> bytes:
        self.calls += 1
        return repr((self.calls, name, text, options, intermediate)).encode()


def test_a_text_is_compiled_once_for_all_processes(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    program = Compiler((9, 0), first, KeptBytes(tmp_path, MOST)).program(TEXT)
    compiler = Compiler((9, 0), second, KeptBytes(tmp_path, MOST))
    assert compiler.program(TEXT) == compiler.program(TEXT) == program
    assert (first.calls, second.calls) == (1, 0)


@pytest.mark.parametrize("what", [*CHANGED, "device", "compiler"])
def test_what_has_changed_is_compiled_again(what: str, tmp_path: Path) -> None:
    before = Counting()
    Compiler((9, 0), before, KeptBytes(tmp_path, MOST)).program(TEXT)
    now = Counting("13.3" if what == "compiler" else before.version)
    compiler = Compiler((8, 0) if what == "device" else (9, 0), now, KeptBytes(tmp_path, MOST))
    compiler.program(CHANGED.get(what, TEXT))
    assert now.calls == 1


def test_a_damaged_program_is_compiled_anew_and_replaced(tmp_path: Path) -> None:
    counting = Counting()
    compiler = Compiler((9, 0), counting, KeptBytes(tmp_path, MOST))
    compiler.program(TEXT)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert compiler.program(TEXT) == compiler.program(TEXT)
    assert counting.calls == 2


def test_ports_of_one_process_tell_once_that_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    counting = Counting()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Compiler((9, 0), counting).program(TEXT)
    assert counting.calls == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("capability", "option", "intermediate"),
    [((7, 5), "sm_75", False), ((9, 0), "sm_90", False), ((8, 6), "compute_80", True), ((12, 0), "compute_90", True)],
)
def test_a_device_that_is_newer_than_the_compiler_gets_code_that_its_driver_finishes(
    capability: tuple[int, int], option: str, intermediate: bool
) -> None:
    assert architecture(capability, [75, 80, 90]) == (f"--gpu-architecture={option}", intermediate)


def test_a_device_that_is_too_old_for_the_compiler_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no device of compute capability 7\.0"):
        architecture((7, 0), [75, 80, 90])


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    try:
        return Nvrtc()
    except (BackendUnavailable, ImportError) as error:
        pytest.skip(f"NVRTC is not installed: {error}")


def test_nvrtc_makes_programs_of_the_ports_own_kernels(nvrtc: Nvrtc, tmp_path: Path) -> None:
    text = source("activate", {"ACTIVATION": "relu", "RUN": 8})
    program = Compiler((9, 0), nvrtc, KeptBytes(tmp_path, MOST)).program(text)
    assert program.startswith(b"\x7fELF")
    later = Compiler((99, 0), nvrtc, KeptBytes(tmp_path, MOST)).program(text)
    assert b".visible .entry activate" in later


def test_what_nvrtc_says_of_a_wrong_text_is_passed_on(nvrtc: Nvrtc, tmp_path: Path) -> None:
    wrong = Source("one", 'extern "C" __global__ void one() {\n    nothing_such();\n}', (), {"one": "="})
    with pytest.raises(RuntimeError, match=r"one\.cu does not compile.*NVRTC_ERROR_COMPILATION(.|\n)*one\.cu\(2\)"):
        Compiler((9, 0), nvrtc, KeptBytes(tmp_path, MOST)).program(wrong)
    assert list(tmp_path.iterdir()) == []


ONE = """constexpr int NUMBER = 1;
#include "shared.cuh"

extern "C" __global__ void one(float* x) {
    await_earlier();
BODY}
"""


def included(monkeypatch: pytest.MonkeyPatch, shared: str, body: str = "") -> Source:
    """A kernel whose text includes another one."""
    texts = {"one.cu": ONE.replace("BODY", body), "shared.cuh": shared}
    monkeypatch.setattr(kernel_source, "_text", texts.__getitem__)
    return source("one", {}, "__device__ void await_earlier();")


def test_what_a_kernel_includes_stands_in_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found = included(monkeypatch, "struct Shared {};\n")
    assert found.text.splitlines()[1:6] == [
        '#line 1 "one.cu"',
        "constexpr int NUMBER = 1;",
        '#line 1 "shared.cuh"',
        "struct Shared {};",
        '#line 3 "one.cu"',
    ]
    assert "#include" not in found.text
    assert included(monkeypatch, "struct Other {};\n") != found


def test_the_compiler_names_the_file_of_an_error(nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler((9, 0), nvrtc, KeptBytes(tmp_path, MOST))
    with pytest.raises(RuntimeError, match=r"shared\.cuh\(2\): error"):
        compiler.program(included(monkeypatch, "struct Shared {};\nnothing_such here;\n"))
    with pytest.raises(RuntimeError, match=r"one\.cu\(6\): error"):
        compiler.program(included(monkeypatch, "struct Shared {};\n", "    nothing_such();\n"))
