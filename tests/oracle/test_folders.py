"""Every kind of Hugging Face folder that `transformers` reads as OPT is the same model to flexref."""

from collections.abc import Callable
from pathlib import Path

import pytest
from oracle_kit import torch
from oracle_kit.checkpoints import SMALL_125M, SMALL_350M, SMALL_GALACTICA, load_oracle, new_model
from oracle_kit.compare import HOME, Oracle, run_flexref, weight_file
from safetensors.torch import load_file, save_file
from transformers import OPTForCausalLM

from flexref.engine.request import Request

PROMPTS = [[9, 1, 2, 33, 60, 4, 17], [2, 40, 8]]
UNTIED = SMALL_125M.changed(tied=False)

Save = Callable[[OPTForCausalLM, Path], None]


def in_shards(model: OPTForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def as_bin(model: OPTForCausalLM, folder: Path) -> None:
    """As `transformers` wrote it for years: head and embedding under both names, one storage where they are tied."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def as_bin_in_old_names(model: OPTForCausalLM, folder: Path) -> None:
    """As the first OPT checkpoints were: names without `model.`, in float16."""
    model.config.save_pretrained(folder)
    state = {name.removeprefix("model."): weight.half() for name, weight in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")


def without_head(model: OPTForCausalLM, folder: Path) -> None:
    """The bare decoder: names that begin with `decoder.`, and no head."""
    model.model.save_pretrained(folder)
    assert all(name.startswith("decoder.") for name in load_file(folder / "model.safetensors"))


def in_bfloat16(model: OPTForCausalLM, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)


def configured_as_tied_with_a_head_of_its_own(model: OPTForCausalLM, folder: Path) -> None:
    """Neither reader takes the configuration's word where the weights say otherwise."""
    model.config.tie_word_embeddings = True
    model.config.save_pretrained(folder)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("variant", "save"),
    [
        (SMALL_350M, in_shards),
        (SMALL_350M, as_bin),
        (UNTIED, as_bin),
        (SMALL_GALACTICA, as_bin_in_old_names),
        (SMALL_125M, without_head),
        (SMALL_GALACTICA, in_bfloat16),
        (UNTIED, configured_as_tied_with_a_head_of_its_own),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value.name,
)
def test_a_folder_is_the_model_that_the_oracle_reads(variant: object, save: Save, tmp_path: Path) -> None:
    save(new_model(variant), tmp_path)
    path = weight_file(tmp_path)
    oracle = Oracle(load_oracle(tmp_path), path)
    oracle.check(PROMPTS, run_flexref(path, PROMPTS, Request(8, ignore_eos=True), HOME))
