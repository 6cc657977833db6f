"""What a user of the library meets first: prompts, the fields of a request, single tensors, and who may look on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy import NumpyBackend

import flexref
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage
from flexref.engine.scoring import Listener
from flexref.errors import EngineError, FlexrefError, PolicyError, PromptError, UnknownTensor, WeightFileError
from flexref.sampling.settings import SamplingSettings
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import open_weight_file, read_tensor
from flexref.text.prompts import Prompt

SPEC = ModelSpec("tiny", 600, 40, 32, 32, 2, 2, 64)
ALL_ON_DEVICE = flexref.Policy()


@pytest.fixture
def engine(model_file: Any) -> Any:
    with flexref.load(model_file(SPEC), policy=ALL_ON_DEVICE) as loaded:
        yield loaded


@pytest.mark.parametrize("one", ["King", b"King", Prompt(text="King")])
def test_a_single_prompt_is_no_list_of_them(engine: flexref.Engine, one: Any) -> None:
    for call in (engine.generate, lambda prompts: list(engine.stream(prompts))):
        with pytest.raises(PromptError, match=r"prompts must be a list, found a single one: write \[.+\] for"):
            call(one)


def test_what_is_no_prompt_is_refused_in_one_line(engine: flexref.Engine) -> None:
    with pytest.raises(PromptError, match=r"^prompt 1: it is neither text nor token ids, found 5$"):
        engine.generate([5, 6])  # type: ignore[list-item]
    with pytest.raises(PromptError, match=r"^prompts must be a list of texts, or of lists of token ids, found 5$"):
        engine.generate(5)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"^row 1: it must be a ScoredRow, found \[5, 6\]$"):
        engine.score([[5, 6]])  # type: ignore[list-item]
    with pytest.raises(PromptError, match=r"^stops must be a tuple of strings, found one string: \('end',\)$"):
        flexref.Request(stops="end")  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [[b"King"], [{"prompt": "King"}], {"King": 1}, {"King"}])
def test_what_only_looks_like_prompts_or_ids_is_none(engine: flexref.Engine, prompts: Any) -> None:
    """The bytes of a text are no ids, and neither an object nor a set is a list."""
    with pytest.raises(PromptError, match=r"neither text nor token ids, found |prompts must be a list of texts"):
        engine.generate(prompts)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("max_new_tokens", 1.5, "max_new_tokens must be a number of tokens from 1 on, found 1.5"),
        ("max_new_tokens", True, "max_new_tokens must be a number of tokens from 1 on, found True"),
        ("max_new_tokens", None, "max_new_tokens must be a number of tokens from 1 on, found None"),
        ("stops", ("end", 5), "stops must be a tuple of strings, found ('end', 5)"),
        ("stops", None, "stops must be a tuple of strings, found None"),
        ("sampling", None, "sampling must be a SamplingSettings, found None"),
        ("ignore_eos", "no", "ignore_eos must be True or False, found 'no'"),
    ],
)
def test_a_field_of_a_request_of_the_wrong_type_is_refused_by_name(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(PromptError) as caught:
        flexref.Request(**{field: value})
    assert str(caught.value) == complaint


def test_numbers_of_numpy_in_a_request_become_plain(engine: flexref.Engine) -> None:
    """Else what is computed from them could not be printed as JSON."""
    found = engine.generate([[5, 6]], max_new_tokens=np.int64(3), logprobs=np.int32(1), ignore_eos=True)
    json.dumps(found.to_json())
    assert found.outputs == engine.generate([[5, 6]], max_new_tokens=3, logprobs=1, ignore_eos=True).outputs


def test_rows_to_score_of_the_wrong_type_are_refused_in_one_line(engine: flexref.Engine) -> None:
    row = flexref.ScoredRow((5, 6, 7))
    expected = engine.score([row, row]).rows
    scored = engine.score(row for _ in range(2)).rows  # type: ignore[arg-type]
    assert [list(found.logprobs) for found in scored] == [list(found.logprobs) for found in expected]
    with pytest.raises(PromptError, match=r"^rows must be a list of ScoredRow, found ScoredRow\("):
        engine.score(row)  # type: ignore[arg-type]
    for first in ("1", 1.0, True):
        with pytest.raises(PromptError, match=f"^row 1: first must be a whole number, found {first!r}$"):
            engine.score([flexref.ScoredRow((5, 6, 7), first)])  # type: ignore[arg-type]
    for top in (0, 1.5, "1", True):
        with pytest.raises(PromptError, match=f"^the number of most probable tokens must be .*, found {top!r}$"):
            engine.score([row], top=top)  # type: ignore[arg-type]


def test_what_is_no_policy_is_refused_before_anything_is_open(engine: flexref.Engine) -> None:
    says = "^policy must be a Policy, found 'policy.json'; Policy.read reads one from a file$"
    with pytest.raises(PolicyError, match=says):
        flexref.load("demo", policy="policy.json")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=says):
        engine.generate([[5, 6]], policy="policy.json")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"^keep names 'rows', which no policy has; its fields are weights, "):
        flexref.load("demo", keep={"rows": 5})
    with pytest.raises(PolicyError, match="rows_per_group must be "):
        flexref.load("demo", keep={"rows_per_group": 0})


def test_ids_may_be_integers_of_numpy_but_nothing_else(engine: flexref.Engine) -> None:
    asked = {"max_new_tokens": 3, "ignore_eos": True}
    expected = engine.generate([[5, 6], [7, 8]], **asked).outputs
    assert engine.generate(np.array([[5, 6], [7, 8]]), **asked).outputs == expected  # type: ignore[arg-type]
    assert type(engine.generate([np.array([5, 6], np.int32)], **asked).outputs[0].prompt[0]) is int  # type: ignore[list-item]
    row, same = flexref.ScoredRow((5, 6, 7)), flexref.ScoredRow(np.array([5, 6, 7]))  # type: ignore[arg-type]
    assert row == same
    for wrong in (5.0, True, "5", np.float64(5)):
        with pytest.raises(PromptError, match="prompt 1: token 2 is "):
            engine.generate([[5, wrong]])  # type: ignore[list-item]


def test_the_fields_of_a_request_are_keywords_too(engine: flexref.Engine) -> None:
    sampled = SamplingSettings(temperature=0.7, seed=5)
    request = flexref.Request(5, sampling=sampled, ignore_eos=True, logprobs=2)
    asked: dict[str, Any] = {"max_new_tokens": 5, "sampling": sampled, "ignore_eos": True, "logprobs": 2}
    assert engine.generate([[5, 6]], **asked).outputs == engine.generate([[5, 6]], request).outputs
    assert list(engine.stream([[5, 6]], **asked)) == list(engine.stream([[5, 6]], request))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"max_tokens": 5}, "unknown argument 'max_tokens'; did you mean max_new_tokens?"),
        ({"xyz": 5}, "unknown argument 'xyz'; the fields of a request are max_new_tokens, sampling, stops, ignore_eos"),
        (
            {"temperature": 0.5},
            "temperature is a field of SamplingSettings: sampling=SamplingSettings(temperature=...)",
        ),
        ({"request": flexref.Request(), "logprobs": 1}, "give a Request or its fields (logprobs), not both"),
        ({"request": 5}, "the second argument must be a Request, found 5"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(engine: flexref.Engine, given: dict[str, Any], complaint: str) -> None:
    for call in (engine.generate, lambda prompts, **fields: list(engine.stream(prompts, **fields))):
        with pytest.raises(TypeError) as caught:
            call([[5, 6]], **given)
        assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(("scheme", "dtype"), [("none", "float16"), ("int4", "float16"), ("int8", "float32")])
def test_every_tensor_can_be_read_in_float32(model_file: Any, scheme: str, dtype: str) -> None:
    file = open_weight_file(model_file(SPEC, scheme, dtype))
    with flexref.load(file, policy=ALL_ON_DEVICE) as engine:
        assert dict(engine.tensors) == {name: stored.shape for name, stored in file.tensors.items()}
        for name, shape in engine.tensors.items():
            found, stored = engine.tensor(name), read_tensor(file.tensors[name])
            assert (found.shape, found.dtype) == (shape, np.float32)
            expected = dequantize(stored) if isinstance(stored, Quantized) else stored.astype(np.float32)
            np.testing.assert_array_equal(found, expected)
            found[...] = 0  # it is the caller's own
        tiles = [name for name in engine.tensors if name.startswith("tokens/")]
        assert len(tiles) > 1
        table = np.concatenate([read_tensor(file.tensors[name]) for name in tiles])  # type: ignore[misc]
        np.testing.assert_array_equal(engine.tensor("tokens"), table.astype(np.float32))


def test_an_unknown_tensor_is_answered_with_names_that_are_near(engine: flexref.Engine) -> None:
    with pytest.raises(UnknownTensor) as caught:
        engine.tensor("layers/000/attention_qvk/weight")
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, FlexrefError)
    said = str(caught.value)
    assert said.startswith("the model has no tensor 'layers/000/attention_qvk/weight'; near: layers/0")
    assert "\n" not in said
    with pytest.raises(UnknownTensor, match="near: layers/001/attention_norm/weight, "):
        engine.tensor("layers/001")
    with pytest.raises(UnknownTensor, match="its first are: tokens, embed/positions, "):
        engine.tensor("☃")


def test_tensors_of_random_weights_and_of_damaged_files(model_file: Any, tmp_path: Path) -> None:
    with flexref.load(random_file(SPEC), policy=ALL_ON_DEVICE) as engine:
        assert engine.tensor("embed/positions").std() > 0
    file = open_weight_file(model_file(SPEC))
    name, stored = next(iter(file.tensors.items()))
    damaged = bytearray(Path(file.path).read_bytes())
    damaged[stored.parts[0].extent.offset] ^= 1
    (tmp_path / "damaged.h5").write_bytes(damaged)
    with (
        flexref.load(tmp_path / "damaged.h5", policy=ALL_ON_DEVICE) as engine,
        pytest.raises(WeightFileError, match=f"dataset {name} is damaged"),
    ):
        engine.tensor(name)


def test_a_tensor_can_be_read_while_a_job_is_under_way_but_not_after_close(model_file: Any) -> None:
    with flexref.load(model_file(SPEC), policy=ALL_ON_DEVICE) as engine:
        tokens = engine.stream([[5, 6]], max_new_tokens=3, ignore_eos=True)
        next(tokens)
        assert engine.tensor("embed/positions").shape == engine.tensors["embed/positions"]
        assert len(list(tokens)) == 2
    with pytest.raises(EngineError, match="closed"):
        engine.tensor("embed/positions")


def test_the_last_hidden_states_are_those_before_the_final_norm(engine: flexref.Engine) -> None:
    seen: list[tuple[str, npt.NDArray[Any]]] = []

    def on_hidden(stage: Stage, rows: npt.NDArray[np.int64], hidden: npt.NDArray[Any]) -> None:
        seen.append((stage.name, hidden))

    row = flexref.ScoredRow((5, 6, 7, 8), first=1)
    (scored,) = engine.score([row], keep_logits=True, listener=Listener(on_hidden=on_hidden)).rows
    assert [name for name, _ in seen] == ["embed", "layer 0", "layer 1"]
    last = seen[-1][1]
    assert last.shape == (3, SPEC.width)  # the last token is predicted and never fed
    assert scored.logits is not None
    weight, bias = engine.tensor("head/norm/weight"), engine.tensor("head/norm/bias")
    centred = last - last.mean(-1, keepdims=True)
    normed = centred / np.sqrt(last.var(-1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(normed @ engine.tensor("tokens").T, scored.logits, rtol=1e-4, atol=1e-4)


def test_a_port_that_passes_every_call_on_sees_the_operators(model_file: Any) -> None:
    class Spy(NumpyBackend):
        """The numpy port, with the shapes of its products."""

        def __init__(self) -> None:
            super().__init__()
            self.shapes: Counter[tuple[int, ...]] = Counter()

        def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
            self.shapes[w.shape] += 1
            return super().linear(x, w, b, out=out, add=add)

    port = Spy()
    with flexref.load(model_file(SPEC), backend=port, policy=ALL_ON_DEVICE) as engine:
        spied = engine.generate([[5, 6]], max_new_tokens=3, ignore_eos=True).outputs[0].token_ids
    with flexref.load(model_file(SPEC), policy=ALL_ON_DEVICE) as engine:
        assert engine.generate([[5, 6]], max_new_tokens=3, ignore_eos=True).outputs[0].token_ids == spied
    assert port.shapes[(3 * SPEC.width, SPEC.width)] == 3 * SPEC.layers
