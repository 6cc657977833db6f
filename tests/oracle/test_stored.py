"""What a weight file stores in fewer bits: the oracle computes with the same rounded or dequantized weights."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from oracle_kit import torch
from oracle_kit.checkpoints import SMALL_125M, SMALL_350M, SMALL_GALACTICA, Variant, load_oracle, new_model
from oracle_kit.compare import HOME, LONG_PROMPT, STEPS, STREAMED, Oracle, run_flexref, weight_file
from transformers import OPTForCausalLM

from flexref.engine.request import Request
from flexref.storage.quant import dequantize, quantize

PROMPTS = [LONG_PROMPT, [2, 40, 8]]


def rounded(model: OPTForCausalLM, scheme: str) -> OPTForCausalLM:
    """The model in float32 with every weight rounded to float16; `int4`: a layer's linear maps through 4-bit groups."""
    halved = deepcopy(model).half().float()
    if scheme == "int4":
        pairs = zip(model.model.decoder.layers.modules(), halved.model.decoder.layers.modules(), strict=True)
        for whole, module in pairs:
            if isinstance(module, torch.nn.Linear):
                groups = quantize(whole.weight.detach().numpy(), 64, np.float16, "a linear map")
                module.weight.data = torch.from_numpy(dequantize(groups))
    return halved


@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("family", [SMALL_125M, SMALL_350M, SMALL_GALACTICA], ids=lambda family: family.name)
def test_a_file_in_fewer_bits_generates_what_the_oracle_does_with_such_weights(
    family: Variant, scheme: str, tmp_path: Path
) -> None:
    new_model(family).save_pretrained(tmp_path)
    path = weight_file(tmp_path, scheme, "float16")
    oracle = Oracle(rounded(load_oracle(tmp_path), scheme), path)
    request = Request(STEPS, ignore_eos=True)
    home = run_flexref(path, PROMPTS, request, HOME)
    oracle.check_fully(PROMPTS, home)
    oracle.check(PROMPTS, run_flexref(path, PROMPTS, request, STREAMED, scratch_bytes=1 << 16))
