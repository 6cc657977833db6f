"""Converting a Hugging Face folder: every form, style and variant comes out the same, and bad folders are one line."""

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.opt import source_names
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import parameters
from flexref.errors import CheckpointError, QuantizationError, WeightFileError
from flexref.storage import writer as writer_module
from flexref.storage.checkpoint import rows as checkpoint_rows
from flexref.storage.convert import convert
from flexref.storage.quant import Quantized, quantize
from flexref.storage.weightfile import open_weight_file, read_tensor

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")


def whole_tables(found) -> dict[str, np.ndarray]:
    """Every tensor of the file as an array, the tiles of a table put together under the table's name."""
    whole: dict[str, list] = {}
    for name, stored in found.tensors.items():
        table = name.rpartition("/")[0] if name.startswith(("tokens/", "head/table/")) else name
        whole.setdefault(table, []).append(read_tensor(stored))
    return {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in whole.items()}


def assert_tensors(found, tensors: dict[str, torch.Tensor], stored_as: Callable) -> None:
    """The file holds the checkpoint's tensors, those of several modules one after the other."""
    for name, values in whole_tables(found).items():
        place = f"{name}/0000" if name in ("tokens", "head/table") else name
        expected = np.concatenate(
            [tensors[source].to(torch.float32).numpy() for source in source_names(found.tensors[place].spec)]
        )
        if isinstance(values, Quantized):
            law = quantize(expected, found.group_size, found.dtype, name)
            np.testing.assert_array_equal(values.codes, law.codes)
            np.testing.assert_array_equal(values.scale, law.scale)
            np.testing.assert_array_equal(values.zero, law.zero)
        else:
            np.testing.assert_array_equal(values, stored_as(expected))


@given(data=st.data())
def test_every_form_style_and_variant_converts_to_the_same_tensors(kit, data) -> None:
    spec = data.draw(kit.model_specs())
    form, prefix = data.draw(st.sampled_from(kit.forms)), data.draw(st.sampled_from(["model.", ""]))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    tensors = {name: value.to(dtype) for name, value in kit.checkpoint_tensors(spec).items()}
    folder = kit.write_folder(spec, kit.styled(tensors, prefix), kit.folder(), form)
    done = convert(folder, folder / "model.h5", "none", dtype="float32")
    found = open_weight_file(folder / "model.h5")
    assert found.spec == done.spec
    assert done.ignored == ()
    assert done.source_bytes == sum(value.nbytes for value in tensors.values())
    assert_tensors(found, tensors, lambda values: values)


@given(data=st.data())
def test_int4_is_the_law_of_quantization_applied_to_the_checkpoint(kit, data) -> None:
    spec = data.draw(kit.model_specs())
    tensors = kit.checkpoint_tensors(spec)
    folder = kit.write_folder(spec, kit.styled(tensors), kit.folder())
    dtype, group_size = data.draw(st.sampled_from(["float16", "float32"])), data.draw(st.integers(1, 70))
    convert(folder, folder / "model.h5", "int4", group_size, dtype, b'{"tokens": 1}')
    found = open_weight_file(folder / "model.h5")
    assert (found.scheme, found.group_size, found.dtype) == ("int4", group_size, dtype)
    assert found.tokenizer_json == b'{"tokens": 1}'
    assert_tensors(found, tensors, lambda values: values.astype(dtype))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
        {"tie_word_embeddings": False},
        {"_remove_final_layer_norm": True},
    ],
)
def test_a_folder_saved_by_transformers_converts(tmp_path: Path, variant: dict) -> None:
    transformers = pytest.importorskip("transformers")

    config = transformers.OPTConfig(
        vocab_size=90,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=40,
        max_position_embeddings=10,
        **variant,
    )
    model = transformers.OPTForCausalLM(config)
    model.save_pretrained(tmp_path)
    done = convert(tmp_path, tmp_path / "model.h5", "none", dtype="float32")
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    found = open_weight_file(tmp_path / "model.h5")
    assert done.ignored == ()
    assert found.spec.tied_head == config.tie_word_embeddings
    assert parameters(found.spec) == sum(value.numel() for value in model.parameters())
    assert_tensors(found, state, lambda values: values)


@given(data=st.data())
def test_a_weight_file_converts_as_its_folder_does(kit, data) -> None:
    spec = data.draw(kit.model_specs())
    folder = kit.write_folder(spec, kit.styled(kit.checkpoint_tensors(spec)), kit.folder())
    scheme, group_size = data.draw(st.sampled_from(["none", "int4", "int4-mse", "int8"])), data.draw(st.integers(1, 70))
    convert(folder, folder / "dense.h5", "none", dtype="float32")
    done = convert(folder / "dense.h5", folder / "again.h5", scheme, group_size)
    convert(folder, folder / "direct.h5", scheme, group_size)
    assert done.ignored == ()
    assert (folder / "again.h5").read_bytes() == (folder / "direct.h5").read_bytes()


def test_a_weight_file_in_groups_is_not_converted_again(kit, tied_spec: ModelSpec) -> None:
    path = kit.write_file(kit.folder() / "model.h5", tied_spec, "int8").path
    with pytest.raises(WeightFileError, match="holds int8 weights: only a file of scheme none"):
        convert(path, path.parent / "again.h5")
    assert not (path.parent / "again.h5").exists()


def test_a_damaged_weight_file_is_not_converted(kit, tied_spec: ModelSpec) -> None:
    path = kit.write_file(kit.folder() / "model.h5", tied_spec, "none").path
    part = open_weight_file(path).tensors["layers/000/ffn_up/weight"].parts[0]
    with path.open("r+b") as file:
        file.seek(part.extent.offset + 9)
        file.write(b"\x55")
    with pytest.raises(WeightFileError, match="ffn_up/weight is damaged"):
        convert(path, path.parent / "again.h5")
    assert not (path.parent / "again.h5").exists()


HEAD, TOKENS = "lm_head.weight", "model.decoder.embed_tokens.weight"


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("configured", [True, False])
def test_a_head_equal_to_the_tokens_is_tied(kit, tied_spec: ModelSpec, form: str, configured: bool) -> None:
    from dataclasses import replace

    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    tensors[HEAD] = tensors[TOKENS] if form == "bin" else tensors[TOKENS].clone()
    folder = kit.write_folder(replace(tied_spec, tied_head=configured), tensors, kit.folder(), form)
    done = convert(folder, folder / "model.h5")
    assert done.spec.tied_head
    assert done.ignored == ()


def test_a_head_that_differs_is_kept_although_the_configuration_ties_it(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.checkpoint_tensors(tied_spec)
    tensors[HEAD] = tensors["decoder.embed_tokens.weight"] + 1
    folder = kit.write_folder(tied_spec, kit.styled(tensors), kit.folder())
    done = convert(folder, folder / "model.h5", "none", dtype="float32")
    assert not done.spec.tied_head
    assert_tensors(open_weight_file(folder / "model.h5"), tensors, lambda values: values)


def test_a_head_of_another_shape_is_no_copy_of_the_tokens(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.checkpoint_tensors(tied_spec)
    tensors[HEAD] = torch.zeros(151, 10)
    folder = kit.write_folder(tied_spec, kit.styled(tensors), kit.folder())
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight has shape \(151, 10\), config.json asks for \(150, 10\)"
    ):
        convert(folder, folder / "model.h5")


def test_a_tied_table_may_stand_under_the_name_of_the_head(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.checkpoint_tensors(tied_spec)
    only_head = kit.styled(tensors)
    only_head[HEAD] = only_head.pop(TOKENS)
    folder = kit.write_folder(tied_spec, only_head, kit.folder())
    assert convert(folder, folder / "model.h5", "none", dtype="float32").spec.tied_head
    assert_tensors(open_weight_file(folder / "model.h5"), tensors, lambda values: values)


def test_tensors_that_the_model_has_no_use_for_are_told(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    tensors |= {"model.decoder.version": torch.ones(1), "model.decoder.layers.9.fc1.weight": torch.ones(2, 2)}
    folder = kit.write_folder(tied_spec, tensors, kit.folder())
    done = convert(folder, folder / "model.h5")
    assert done.ignored == ("model.decoder.layers.9.fc1.weight", "model.decoder.version")


def test_views_in_a_torch_file_are_read_as_what_they_show(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.checkpoint_tensors(tied_spec)
    table = torch.randn(10, 400)
    tensors["decoder.embed_tokens.weight"] = table[:, 50:200].T
    tensors["decoder.project_in.weight"] = torch.randn(24, 30)[::2, 10:20]
    tensors["decoder.layers.0.fc1.bias"] = torch.tensor(0.5).expand(20)
    tensors["decoder.layers.0.fc2.bias"] = torch.nn.Parameter(torch.randn(12))
    folder = kit.write_folder(tied_spec, kit.styled(tensors), kit.folder(), "bin")
    convert(folder, folder / "model.h5", "none", dtype="float32")
    detached = {name: value.detach() for name, value in tensors.items()}
    assert_tensors(open_weight_file(folder / "model.h5"), detached, lambda values: values)


def test_memory_is_a_few_slabs_whatever_the_size_of_a_tensor(kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab of 64 Ki elements passes through float32 and a few arrays of its size; the table alone has 64 MiB."""
    monkeypatch.setattr(writer_module, "SLAB_ELEMENTS", 1 << 16)
    spec = ModelSpec("wide", 65536, 4, 256, 256, 1, 4, 4096)
    folder = kit.write_folder(spec, kit.styled(kit.checkpoint_tensors(spec)), kit.folder(), "bin")
    tracemalloc.start()
    convert(folder, folder / "model.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 4 * (1 << 16)
    shutil.rmtree(folder)


def test_progress_is_told_in_bytes_of_the_checkpoint(kit, tied_spec: ModelSpec) -> None:
    folder = kit.write_folder(tied_spec, kit.styled(kit.checkpoint_tensors(tied_spec)), kit.folder())
    seen: list[tuple[int, int]] = []
    done = convert(folder, folder / "model.h5", on_progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (done.source_bytes, done.source_bytes)
    assert [pair[0] for pair in seen] == sorted(pair[0] for pair in seen)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("model.decoder.layers.0.self_attn.k_proj.weight", QuantizationError),
        ("model.decoder.layers.0.self_attn.v_proj.bias", CheckpointError),
        (TOKENS, CheckpointError),
    ],
)
def test_weights_that_are_not_finite_are_named_as_in_the_folder(
    kit, tied_spec: ModelSpec, form: str, name: str, error: type
) -> None:
    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    tensors[name].view(-1)[-1] = torch.nan
    folder = kit.write_folder(tied_spec, tensors, kit.folder(), form)
    with pytest.raises(error, match=f"^{name}: holds .* not finite"):
        convert(folder, folder / "model.h5", "int4")
    assert not [path for path in folder.iterdir() if ".h5" in path.name]


def test_weights_beyond_float16_need_float32(kit, tied_spec: ModelSpec) -> None:
    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    tensors[TOKENS][3, 3] = 1e5
    folder = kit.write_folder(tied_spec, tensors, kit.folder())
    with pytest.raises(CheckpointError, match=f"^{TOKENS}: holds values beyond the range of float16; use float32"):
        convert(folder, folder / "model.h5")
    convert(folder, folder / "model.h5", dtype="float32")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_that_are_integers_are_refused(kit, tied_spec: ModelSpec, form: str) -> None:
    tensors = kit.styled(kit.checkpoint_tensors(tied_spec))
    tensors[TOKENS] = tensors[TOKENS].to(torch.int32)
    folder = kit.write_folder(tied_spec, tensors, kit.folder(), form)
    with pytest.raises(CheckpointError, match=rf"tensor {TOKENS} has type (I32|int32), needed one of float16"):
        convert(folder, folder / "model.h5")


def test_a_shard_that_shrinks_while_it_is_read_is_told(kit, tied_spec: ModelSpec, monkeypatch) -> None:
    folder = kit.write_folder(tied_spec, kit.styled(kit.checkpoint_tensors(tied_spec)), kit.folder())
    checkpoint = checkpoint_rows.open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    monkeypatch.setattr(checkpoint_rows, "open_checkpoint", lambda _: checkpoint)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated inside tensor"):
        convert(folder, folder / "model.h5")
    assert not [path for path in folder.iterdir() if ".h5" in path.name]
