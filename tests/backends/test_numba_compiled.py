"""Functions that numba compiles: kept, found again, made anew where they are damaged; they name what they depend on."""

import importlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexref.backend.compiling import CompileTime
from flexref.backend.protocol import QuantizedMatrix
from flexref.machine.kept_bytes import SUFFIX
from flexref.storage.quant import dequantize, quantize

compiled = pytest.importorskip("flexref_numba.compiled", reason="numba is not installed")


def make_sum(addend: int) -> Callable[..., Any]:
    def total(x) -> int:  # type: ignore[no-untyped-def]
        return x + addend

    return total


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and functions that this process has not read yet."""
    monkeypatch.setenv("FLEXREF_CACHE_DIR", str(tmp_path))
    compiled.compiled.cache_clear()
    return tmp_path / compiled.KEPT_FOLDER


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were compiled, and not read."""
    made: list[str] = []
    save = compiled.Kept.save_overload

    def noted(kept: Any, sig: Any, data: Any) -> None:
        made.append(str(sig))
        save(kept, sig, data)

    monkeypatch.setattr(compiled.Kept, "save_overload", noted)
    return made


def test_a_function_is_compiled_once_and_then_read_and_its_port_is_told_the_time(
    folder: Path, compiles: list[str]
) -> None:
    for number in range(2):
        compiling = CompileTime()
        functions = compiled.Functions(compiling)
        assert functions.get(make_sum, 3).call(4) == 7
        waited = compiling.seconds
        assert waited > 0
        assert functions.get(make_sum, 3).call(5) == 8
        assert compiling.seconds == waited
        assert (len(compiles), len(list(folder.glob(f"*{SUFFIX}")))) == (1, 1), number
        compiled.compiled.cache_clear()


def test_variants_are_functions_of_their_own(folder: Path, compiles: list[str]) -> None:
    functions = compiled.Functions(CompileTime())
    assert [functions.get(make_sum, addend).call(1) for addend in (1, 2)] == [2, 3]
    assert len(list(folder.glob(f"*{SUFFIX}"))) == len(compiles) == 2


def test_what_is_damaged_is_compiled_anew(folder: Path, compiles: list[str]) -> None:
    compiled.Functions(CompileTime()).get(make_sum, 3)
    (kept,) = folder.glob(f"*{SUFFIX}")
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0\0")
    compiled.compiled.cache_clear()
    assert compiled.Functions(CompileTime()).get(make_sum, 3).call(4) == 7
    assert len(compiles) == 2


def test_without_a_folder_that_can_be_written_functions_are_compiled_each_time(
    folder: Path, compiles: list[str]
) -> None:
    folder.parent.joinpath(compiled.KEPT_FOLDER).write_text("no folder", encoding="utf-8")
    assert compiled.Functions(CompileTime()).get(make_sum, 3).call(4) == 7
    assert len(compiles) == 1


def test_several_threads_ask_at_once(folder: Path, compiles: list[str]) -> None:
    functions, found = compiled.Functions(CompileTime()), list[int]()
    threads = [threading.Thread(target=lambda: found.append(functions.get(make_sum, 5).call(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(compiles)) == ([6] * 4, 1)


def test_a_kept_function_is_named_by_the_sources_the_versions_and_the_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {compiled.function_key(make_sum, (3,)), compiled.function_key(make_sum, (4,))}
    monkeypatch.setattr(compiled, "SOURCES", "others")
    keys.add(compiled.function_key(make_sum, (3,)))
    monkeypatch.setattr(compiled.numba, "__version__", "0.0")
    keys.add(compiled.function_key(make_sum, (3,)))
    assert len(keys) == 4


COMPILE = """
from flexref.backend.compiling import CompileTime
from flexref_numba.compiled import Functions
from flexref_numba.kernels.products import make_product
from flexref_numba.kernels.sharing import make_share
from flexref_numba.kernels.tiles import Form

functions = Functions(CompileTime())
functions.shared(make_product, Form("codes{bits}", 64, "float16"), True, False)
functions.get(make_share)
"""


def test_functions_of_one_name_that_other_processes_kept_do_not_take_each_others_place(
    folder: Path, compiles: list[str]
) -> None:
    for bits in (4, 8):
        subprocess.run([sys.executable, "-c", COMPILE.replace("{bits}", str(bits))], check=True)
    products = importlib.import_module("flexref_numba.products")
    functions = compiled.Functions(CompileTime())
    threads = importlib.import_module("flexref_numba.threads").Threads(1, functions)
    port = products.Products(functions, threads, paneled=False)
    x, w = (np.random.default_rng(rows).standard_normal((rows, 64), np.float32) for rows in (3, 37))
    for bits in (4, 8):
        coded = quantize(w, 64, np.float16, "w", bits)
        matrix = QuantizedMatrix(coded.codes, coded.scale, coded.zero, 64, 64, bits)
        found = port.linear(x, matrix, None, np.empty((3, 37), np.float32), add=False)
        np.testing.assert_allclose(found, x @ dequantize(coded).T, atol=1e-4)
    threads.close()
    assert compiles == []


def test_without_numba_the_extra_is_named() -> None:
    code = "import sys; sys.modules['numba'] = None; from flexref_numba import NumbaBackend"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: numba cannot be imported" in done.stderr
    assert "pip install '.[numba]' in the checkout of flexref" in done.stderr


def test_kept_functions_are_named_by_what_they_take_from_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {compiled.function_key(make_sum, (3,))}
    monkeypatch.setattr("flexref.backend.protocol.CHUNK_TOKENS", 128)
    keys.add(compiled.function_key(make_sum, (3,)))
    digests = {compiled.digest_of_sources()}
    for module in ("protocol", "records"):
        changed = tmp_path / f"{module}.py"
        changed.write_text("# of another version", encoding="utf-8")
        monkeypatch.setattr(f"flexref.backend.{module}.__file__", str(changed))
        digests.add(compiled.digest_of_sources())
    assert (len(keys), len(digests)) == (2, 3)


def test_that_numba_may_compile_nothing_is_said_in_a_line() -> None:
    code = "from flexref.backend.registry import create; create('numba')"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stderr.splitlines()[-1].endswith("numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it")
    assert "BackendUnavailable" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are settings of numba for x86")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"NUMBA_ENABLE_AVX": "0"}, "['False', 'True']"),
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, "x86 without F16C"),
    ],
)
def test_functions_are_for_the_processor_that_numba_compiles_for(settings: dict[str, str], said: str) -> None:
    code = """if True:
        from flexref.backend.compiling import CompileTime
        from flexref.errors import BackendUnavailable
        from flexref_numba.compiled import Functions
        from flexref_numba.kernels.vectors import reads_halves, wide_registers
        try:
            Functions(CompileTime())
            print([str(wide_registers()), str(reads_halves())])
        except BackendUnavailable as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **settings}
    )
    assert said in done.stdout
