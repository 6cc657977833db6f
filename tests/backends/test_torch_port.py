"""The port to PyTorch beside its contract: devices, the user's settings, pieces, and the memory that it takes."""

import builtins
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flexref_torch
import numpy as np
import pytest
from hypothesis import strategies as st

from flexref.backend.protocol import QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.errors import BackendUnavailable
from flexref.storage.quant import quantize
from flexref.testing.clauses import attention, cache, pointwise, prefixes, products, sampling
from flexref.testing.contract import Clause, clause_name, violation

torch = pytest.importorskip("torch")
exact_products = pytest.importorskip("flexref_torch.operators").exact_products
port_attention = pytest.importorskip("flexref_torch.attention")
PIECES = pytest.importorskip("flexref_torch.backend").PIECES

FEW, MORE = 300, 3000
"""Elements of a piece, so that the contract's small operands are cut into many; `MORE` where these are longer."""


@pytest.fixture(scope="module")
def port() -> Any:
    made: Any = flexref_torch.TorchBackend("cpu")
    yield made
    made.close()


def test_importing_the_port_loads_no_pytorch() -> None:
    code = "import sys, flexref_torch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "False\n"


def test_without_pytorch_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    really_import = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")
        return really_import(name, *rest, **named)

    for name in [name for name in sys.modules if name.startswith("flexref_torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailable, match=r"^PyTorch is not installed; .*'\.\[torch\]'"):
        flexref_torch.TorchBackend()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps:1", "meta", "cpu:1"])
def test_a_device_that_is_not_here_is_named_beside_those_that_are(device: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"device '{device}' is not here; PyTorch .* has {{.*'cpu': 1}}$"):
        flexref_torch.TorchBackend(device)


def test_a_users_settings_are_as_before_after_each_product(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, seen = torch.backends.cuda.matmul, []
    really = torch.Tensor.__matmul__

    def spy(x: Any, y: Any) -> Any:
        exact = flags.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        seen.append((set(exact) <= {"none", "ieee"}, flags.allow_fp16_reduced_precision_reduction))
        return really(x, y)

    def settings() -> tuple[Any, ...]:
        return (
            torch.get_float32_matmul_precision(),
            flags.allow_fp16_reduced_precision_reduction,
            flags.allow_fp16_reduced_precision_reduction_split_k,
            torch.backends.mkldnn.matmul.fp32_precision,
        )

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    before = settings()
    x = port.upload(np.ones((2, 3), np.float32))
    try:
        for precision, reduction in (("medium", (True, True)), ("high", (False, True)), ("highest", (False, False))):
            torch.set_float32_matmul_precision(precision)
            flags.allow_fp16_reduced_precision_reduction = reduction
            asked = settings()
            port.linear(x, x, None)
            assert settings() == asked
    finally:
        torch.set_float32_matmul_precision(before[0])
        flags.allow_fp16_reduced_precision_reduction = before[1:3]
    assert seen == [(True, False)] * 3


def test_a_product_reads_all_bits_however_pytorch_was_told_not_to() -> None:
    """In processes of their own: PyTorch does not forget that both of its ways of setting it were used.

    They begin as copies of one that has loaded it. Its compiler, which takes longer to load than all else, is not
    there: nothing on a processor needs it.
    """
    code = """if True:
        import flexref_torch, numpy as np, operator, os, sys, torch
        def told(setting):
            flags = operator.attrgetter(setting)(torch)
            flags.fp32_precision = "tf32" if "cuda" in setting else "bf16"
            def settings():
                each = torch.backends, torch.backends.mkldnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
                return [one.fp32_precision for one in each]
            before, port = settings(), flexref_torch.TorchBackend("cpu")
            draw = np.random.default_rng(0)
            x, w = (draw.standard_normal((64, 256)).astype(np.float32) for _ in range(2))
            found = port.download(port.linear(port.upload(x), port.upload(w), None))
            error = np.abs(found - x.astype(np.float64) @ w.T.astype(np.float64)).max()
            as_before = settings() == before
            flags.fp32_precision = "none"
            return bool(error < 1e-4), as_before, set(settings()) == {"none"}, "torch._dynamo" not in sys.modules
        for setting in sys.argv[1:]:
            child = os.fork()
            if child == 0:
                print(setting, *told(setting), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """
    settings = ("backends.cuda.matmul", "backends.mkldnn.matmul", "backends.mkldnn", "backends")
    done = subprocess.run([sys.executable, "-c", code, *settings], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{setting} True True True True" for setting in settings], done.stderr


def test_a_thread_that_is_done_leaves_anothers_product_exact() -> None:
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction
    with exact_products:
        thread = threading.Thread(target=exact_products.__enter__)
        thread.start()
        thread.join()
        exact_products.__exit__()
        assert not flags.allow_fp16_reduced_precision_reduction
    assert flags.allow_fp16_reduced_precision_reduction == before


@pytest.mark.parametrize(
    "clause",
    [
        products.gather_takes_the_named_rows,
        products.add_rows_adds_the_named_rows,
        products.linear_is_the_product,
        products.linear_adds_to_its_result,
        products.expand_is_the_matrix,
        products.linear_of_expanded_weights_has_the_same_bits,
        pointwise.layer_norm_is_the_norm,
        pointwise.activations_are_their_functions,
        cache.append_writes_the_records,
        cache.append_quantizes_by_the_law,
        attention.attend_is_causal_attention,
        attention.later_tokens_have_no_effect,
        prefixes.a_shared_prefix_is_as_good_as_a_copy,
        sampling.sampling_inverts_the_distribution,
        sampling.greedy_takes_the_lowest_of_the_best,
    ],
    ids=clause_name,
)
def test_an_operator_in_many_pieces_keeps_its_law(clause: Clause, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = clause.__module__ in (attention.__name__, prefixes.__name__)
    monkeypatch.setattr(port, "_most", MORE if long else FEW)
    error = violation(port, clause, 6 if long else 20)
    assert error is None, error


@pytest.mark.parametrize(
    "clause",
    [
        products.linear_is_the_product,
        products.linear_adds_to_its_result,
        products.expand_is_the_matrix,
        products.linear_of_expanded_weights_has_the_same_bits,
        products.add_rows_adds_the_named_rows,
        pointwise.layer_norm_is_the_norm,
        pointwise.activations_are_their_functions,
        cache.append_quantizes_by_the_law,
        attention.attend_is_causal_attention,
        attention.attention_does_not_depend_on_other_rows,
        sampling.sampling_inverts_the_distribution,
    ],
    ids=clause_name,
)
def test_float16_as_on_a_gpu_keeps_its_law(clause: Clause, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "caps", replace(port.caps, compute_dtype="float16"))
    error = violation(port, clause, 10)
    assert error is None, error


@pytest.fixture
def like_cuda(port: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The port as it is on CUDA, with the processor's kernel in the place of CUDA's; rows of every call of it."""
    calls, really = list[int](), port_attention.scaled_dot_product_attention

    def counted(q: Any, *rest: Any, **named: Any) -> Any:
        calls.append(len(q))
        return really(q, *rest, **named)

    monkeypatch.setattr(port, "caps", replace(port.caps, compute_dtype="float16"))
    monkeypatch.setattr(port, "_tile", PIECES["cuda"][1])
    port_attention.load_fused()
    monkeypatch.setattr(port, "_fuses", True)
    monkeypatch.setattr(port_attention, "FUSED", torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    monkeypatch.setattr(port_attention, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize(
    ("clause", "together"),
    [
        (attention.attend_is_causal_attention, 1),
        (attention.later_tokens_have_no_effect, 1),
        (attention.stale_records_have_no_effect, 1),
        (attention.rows_in_one_buffer_are_as_good_as_rows_apart, 4),
        (prefixes.a_shared_prefix_is_as_good_as_a_copy, 1),
    ],
    ids=lambda part: part if isinstance(part, int) else clause_name(part),
)
def test_the_fused_kernel_is_given_what_it_needs(
    clause: Clause, together: int, port: Any, like_cuda: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = st.builds(RecordLayout, st.integers(1, 3), st.sampled_from((8, 16)), st.just("float16"))
    monkeypatch.setattr(sys.modules[clause.__module__], "layouts", lambda *_: layouts)
    monkeypatch.setattr(port, "_most", 20 * MORE)
    error = violation(port, clause, 12)
    assert error is None, error
    assert max(like_cuda) == together


@pytest.mark.parametrize("width", [12, 16])
def test_rows_that_lie_evenly_are_one_call_where_the_kernel_takes_their_heads(
    width: int, port: Any, like_cuda: list[int]
) -> None:
    layout = RecordLayout(2, width, "float16")
    cache = port.allocate("device", 3 * 5 * layout.record_bytes)
    rows = port.cache_rows([each for each in cache.view(3, -1)], layout)
    x = torch.ones((3, 2 * width), dtype=torch.float16)
    for past in range(2):
        segments = port.segments([past] * 3, [1] * 3)
        port.append(rows, segments, x, x)
        assert bool((port.attend(rows, segments, x, 1.0, torch.zeros_like(x)) == 1).all())
    assert like_cuda == ([] if width % 8 else [3, 3])


@pytest.mark.parametrize(
    "clause",
    [
        products.linear_is_the_product,
        products.linear_of_expanded_weights_has_the_same_bits,
        products.expand_is_the_matrix,
        cache.append_quantizes_by_the_law,
    ],
    ids=clause_name,
)
def test_tiles_of_many_pieces_keep_the_law(
    clause: Clause, port: Any, like_cuda: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_most", FEW)
    error = violation(port, clause, 12)
    assert error is None, error


def taken_bytes(call: Callable[[], Any]) -> int:
    """The most memory of PyTorch's allocator that a call held beyond what it began with."""
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with profile:
        call()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(max(np.cumsum([0, *changes])))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_operator_takes_more_memory_than_it_says(
    dtype: str, port: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """At shapes of which every one is many pieces. That a product takes anything at all shows that it is counted."""
    most = 1 << 14
    if dtype == "float16":
        request.getfixturevalue("like_cuda")
    monkeypatch.setattr(port, "_most", most)
    draw = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return port.upload(draw.standard_normal(shape).astype(dtype))

    x, w, b, table = array(200, 500), array(300, 500), array(300), array(400, 500)
    packed = quantize(draw.standard_normal((300, 500)), 64, np.float16, "weights of a test")
    parts = (port.upload(part) for part in (packed.codes, packed.scale, packed.zero))
    codes = QuantizedMatrix(*parts, width=500, group_size=64)
    ids, out, full = port.upload(draw.integers(0, 400, 200).astype(np.int32)), array(200, 300), array(300, 500)
    logits = array(40, 5000)
    taken = {
        "linear": taken_bytes(lambda: port.linear(x, w, b, out=out, add=True)),
        "linear of codes": taken_bytes(lambda: port.linear(x, codes, b, out=out, add=True)),
        "expand": taken_bytes(lambda: port.expand(codes, full)),
        "gather": taken_bytes(lambda: port.gather(table, ids, 3, x)),
        "add_rows": taken_bytes(lambda: port.add_rows(x, table, ids)),
        "layer_norm": taken_bytes(lambda: port.layer_norm(x, x[0], x[1], 1e-5, out=x)),
        "gelu": taken_bytes(lambda: port.activate(x, "gelu_tanh")),
        "quick_gelu": taken_bytes(lambda: port.activate(x, "quick_gelu")),
        "sample": taken_bytes(lambda: port.sample(logits, 1.0, 0, 0.9, np.full(40, 0.5))),
        "greedy": taken_bytes(lambda: port.sample(logits, 0.0, 0, 1.0, np.full(40, 0.5))),
    }
    for scheme in ("none", "int4"):
        layout = RecordLayout(10, 50, dtype, scheme, 16)
        rows = port.cache_rows([port.upload(np.zeros(300 * layout.record_bytes, np.uint8))], layout)
        segments = port.segments([80], [200])
        taken[f"append {scheme}"] = taken_bytes(lambda rows=rows, segments=segments: port.append(rows, segments, x, x))
        taken[f"attend {scheme}"] = taken_bytes(
            lambda rows=rows, segments=segments: port.attend(rows, segments, x, 0.1, full[:200])
        )
    bound = port.caps.scratch_bytes * most // (1 << 18)
    assert {what: nbytes for what, nbytes in taken.items() if not most <= nbytes <= bound} == {}
