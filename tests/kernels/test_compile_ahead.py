"""What a job starts was compiled before it asked for it: beside all else, and each text once."""

import ast
import inspect
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.driver.kernel_source import Source, source
from flexref_cupy.driver.launching import Kernels
from flexref_cupy.driver.variants import VARIANTS
from flexref_cupy.rehearsal import FIRST_ADDRESS, ImaginaryCuda

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.scoring import ScoredRow
from flexref.loading import load
from flexref.policy import Policy
from flexref.text.prompts import Prompt

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

SPEC = ModelSpec("tiny", 60, 64, 128, 128, 2, 8, 256, activation="relu")
PROJECTED = ModelSpec("projected", 60, 64, 64, 32, 2, 2, 128, activation="gelu", pre_norm=False, final_norm=False)

AWAY = Policy.from_percent([0, 100, 0, 100, 0, 100], rows_per_group=9, overlap=True)


class Noting(EmulatedCuda):
    """Notes what is compiled, and whether a caller had to do it."""

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        super().__init__(capability, multiprocessors=8, ahead=True)
        self.texts: list[Source] = []
        self.in_the_middle: list[Source] = []

    def compile(self, text: Source) -> Any:
        self.texts.append(text)
        if threading.current_thread() is threading.main_thread():
            self.in_the_middle.append(text)
        return super().compile(text)


@pytest.mark.parametrize(
    ("scheme", "policy", "spec"),
    [
        ("none", Policy(rows_per_group=2), SPEC),
        ("int4", Policy(rows_per_group=9, cache_scheme="int4", cache_group_size=16), SPEC),
        ("int4", AWAY.changed(row_invariant=False), SPEC),
        ("none", AWAY, PROJECTED),
    ],
)
def test_no_pass_of_a_job_compiles_and_each_text_is_compiled_once(
    scheme: str, policy: Policy, spec: ModelSpec, tmp_path: Path
) -> None:
    write_model(tmp_path / "model.h5", spec, scheme, "float16" if scheme == "int4" else "float32")
    cuda = Noting()
    prompts = [Prompt(token_ids=(5,) * (1 + row % 3), settings={"max_new_tokens": 1 + row % 4}) for row in range(9)]
    with load(tmp_path / "model.h5", policy=policy, backend=CupyBackend(cuda=cuda)) as engine:
        engine.generate(prompts, ignore_eos=True)
        engine.score([ScoredRow((5, 6, 7, 8, 9), 2)])
    assert cuda.in_the_middle == []
    assert cuda.texts
    assert len({(text.operator, text.macros) for text in cuda.texts}) == len(cuda.texts)


def test_what_does_not_compile_is_raised_by_who_asks_for_it() -> None:
    class Failing(Noting):
        def compile(self, text: Source) -> Any:
            if text.operator == "activate":
                raise RuntimeError("activate.cu does not compile")
            return super().compile(text)

    with (
        load("demo", policy=Policy(), backend=CupyBackend(cuda=Failing())) as engine,
        pytest.raises(RuntimeError, match=r"activate\.cu does not compile"),
    ):
        engine.generate([[5]], max_new_tokens=1)


def test_what_is_prepared_twice_is_compiled_once_also_if_it_is_asked_for_in_between() -> None:
    cuda = Noting()
    kernels = Kernels(cuda)  # type: ignore[arg-type]
    texts = [source("activate", macros) for macros in VARIANTS["activate"][:2]]
    kernels.prepare(texts)
    kernels.prepare(texts)
    kernels.get("activate", "activate", **VARIANTS["activate"][0])
    kernels.prepare(texts)
    kernels.get("activate", "activate", **VARIANTS["activate"][1])
    kernels.close()
    assert sorted(text.macros for text in cuda.texts) == sorted(text.macros for text in texts)
    assert cuda.in_the_middle == []


def test_a_block_like_the_one_before_is_not_rehearsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ImaginaryCuda] = []
    really_made = ImaginaryCuda.__init__

    def noted(self: ImaginaryCuda, like: Any) -> None:
        made.append(self)
        really_made(self, like)

    monkeypatch.setattr(ImaginaryCuda, "__init__", noted)
    with load("demo", policy=Policy(), backend=CupyBackend(cuda=Noting())) as engine:
        for _ in range(2):
            engine.generate([[5]], max_new_tokens=1)
        assert len(made) == 1
        engine.generate([[5] * 40], max_new_tokens=1)
        assert len(made) == 2


def test_an_imaginary_device_gives_memory_that_nobody_has_and_zeros_of_it() -> None:
    cuda = ImaginaryCuda(EmulatedCuda())
    first, second = cuda.allocate(5000), cuda.allocate(1)
    assert FIRST_ADDRESS <= first < first + 5000 <= second
    assert first % 4096 == second % 4096 == 0
    calls = [name for name in vars(Cuda) if not name.startswith("_") and callable(getattr(Cuda, name))]
    assert all(callable(getattr(cuda, name)) for name in calls)
    with pytest.raises(AttributeError, match="no nothing_such"):
        _ = cuda.nothing_such


def test_an_imaginary_device_has_all_that_a_device_says_of_itself() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(Cuda)))
    said = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    cuda = ImaginaryCuda(EmulatedCuda())
    assert {"capability", "multiprocessors", "compute_stream"} <= said
    assert [name for name in sorted(said) if not name.startswith("_") and callable(getattr(cuda, name))] == []


def test_after_settling_nothing_is_compiled_any_more_and_what_fails_is_told_to_who_asks() -> None:
    cuda = Noting()
    kernels = Kernels(cuda)  # type: ignore[arg-type]
    kernels.settle()
    texts = [source("activate", macros) for macros in VARIANTS["activate"][:2]]
    kernels.prepare(texts)
    kernels.settle()
    assert sorted(text.macros for text in cuda.texts) == sorted(text.macros for text in texts)
    kernels.close()
