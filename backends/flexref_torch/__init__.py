"""The port to PyTorch's devices, CUDA, ROCm, Apple's and the processor: importing it loads no PyTorch."""

from typing import Any

from flexref.errors import BackendUnavailable, install_hint


def __getattr__(name: str) -> Any:
    if name != "TorchBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from flexref_torch.backend import TorchBackend  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendUnavailable(f"PyTorch is not installed; {install_hint('torch')}") from error
    return TorchBackend
