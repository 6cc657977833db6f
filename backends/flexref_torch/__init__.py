"""The port to PyTorch's devices, CUDA, ROCm, Apple's and the processor: importing it loads no PyTorch."""

from typing import Any

from flexref.backend.registry import loaded_when_asked


def __getattr__(name: str) -> Any:
    return loaded_when_asked(name, "flexref_torch.backend.TorchBackend", "torch", "PyTorch")
