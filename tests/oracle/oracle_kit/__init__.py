"""What the oracle's tests share: checkpoints, the bound on float32, and the comparison; absent torch skips them all."""

import os

import pytest

# Set before its import: nothing here may look for a model elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests take `torch` from here: so they are skipped before they import it.
torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")
pytest.importorskip("transformers", reason="the oracle needs transformers: pip install '.[oracle]'")
