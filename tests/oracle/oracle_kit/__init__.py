"""What the oracle's tests share: checkpoints, the bound on float32, and the comparison; absent torch skips them all."""

import os

import pytest

# Before its import: nothing here may look for a model elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install flexref[oracle]")
pytest.importorskip("transformers", reason="the oracle needs transformers: pip install flexref[oracle]")
