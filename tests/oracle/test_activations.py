"""Every activation that a configuration can name: computed as the oracle computes it, or refused by name."""

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from oracle_kit import torch
from oracle_kit.checkpoints import SMALL_125M
from transformers.activations import ACT2CLS, ACT2FN

from flexref.architecture.opt import from_config
from flexref.check.tolerances import activation_bound, arithmetic, assert_within
from flexref.errors import CheckpointError

GELU_BY_ERF = ("gelu", "gelu_python")
GELU_BY_TANH = ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh")
COMPUTED = (*GELU_BY_ERF, *GELU_BY_TANH, "quick_gelu", "relu", "sigmoid", "silu", "swish", "tanh")
REFUSED = sorted(set(ACT2CLS) - set(COMPUTED))
HOW = arithmetic("float32")


def configured(name: str) -> dict[str, object]:
    return {**SMALL_125M.config().to_dict(), "activation_function": name}


@pytest.mark.parametrize("name", COMPUTED)
def test_an_activation_is_the_oracles_of_that_name(name: str) -> None:
    activation = from_config(configured(name), "oracle").activation
    x = np.concatenate([np.linspace(-12, 12, 4801), [-80, -1e-3, 0, 1e-30, 90]]).astype(np.float32)[None]
    exact = ACT2FN[name](torch.from_numpy(x.astype(np.float64))).numpy()
    bound = activation_bound(x.astype(np.float64), exact, activation, HOW)
    backend = NumpyBackend()
    try:
        found = backend.activate(x.copy(), activation)
    finally:
        backend.close()
    assert_within(found, exact, bound, f"flexref's {name}")
    assert_within(ACT2FN[name](torch.from_numpy(x)).numpy(), exact, bound, f"the oracle's {name}")


@pytest.mark.parametrize("name", REFUSED)
def test_an_activation_that_no_port_computes_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown activation_function '{name}'; known: relu, ") as refused:
        from_config(configured(name), "oracle")
    assert "\n" not in str(refused.value)
