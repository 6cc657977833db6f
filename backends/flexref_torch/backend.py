"""The port to PyTorch: which device it takes, what it promises, and its lanes; it knows no model."""

from collections.abc import Callable
from typing import Any

import torch

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.device_streams import streams_of
from flexref.backend.lane_threads import HostStream
from flexref.backend.recording import DirectCalls
from flexref.errors import BackendUnavailable
from flexref.units import MIB
from flexref_torch.attention import CacheOperators, load_fused
from flexref_torch.memory import DeviceMemory

PIECES = {"cpu": (1 << 18, 1), "cuda": (1 << 23, 8), "mps": (1 << 22, 8)}
"""What a temporary array of an operator may have: it stays near the processor's caches, or fills a device; and how many
times as many elements a tile of a matrix, in float16: calling many products of a few rows takes longer than they do."""

PIECE_BYTES = 32
"""Of each of these elements: eight arrays of float32 at once are more than any operator has."""

LIBRARY_BYTES = 32 * MIB
"""What PyTorch gives cuBLAS to work in on Hopper; less on others."""


class TorchBackend(DeviceMemory, CacheOperators, DirectCalls):
    """CUDA, ROCm, Apple's GPUs or the processor, whichever PyTorch finds."""

    name = "torch"

    def __init__(self, device: str | int | None = None) -> None:
        """`device` as PyTorch names it, `cuda:1` for example, or a number; without a name CUDA (or ROCm), else Apple's,
        else the processor. Raises `BackendUnavailable`."""
        self._device = device_of(device)
        kind = self._device.type
        (self._most, self._tile), self._fuses = PIECES[kind], kind == "cuda"
        if self._fuses:
            load_fused()
        self.caps = Capabilities(
            compute_dtype="float32" if kind == "cpu" else "float16",
            computes=True,
            overlaps_copies=kind != "mps",
            attends_on_host=kind == "cpu",
            scratch_bytes=PIECE_BYTES * self._most + LIBRARY_BYTES * (kind == "cuda"),
            fused_rows=0,
            one_memory=kind == "cpu",
            shares_prefixes=True,
        )
        self._begin_lanes(*streams(self._device))

    def describe(self) -> Description:
        numbers = range(torch.cuda.device_count() if self._device.type == "cuda" else 0)
        seen = [torch.cuda.get_device_properties(number) for number in numbers]
        found = [f"{each.name}, {each.total_memory} bytes" for each in seen]
        if self._device.type == "mps":
            found = [f"Apple GPU, {torch.mps.recommended_max_memory()} bytes"]
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
        return Description(tuple(found), {name: str(version) for name, version in versions.items() if version})

    def keep_rows_apart(self, on: bool) -> None:
        """No row has bits of its own here: how a product sums depends on how many rows it has."""


def device_of(asked: str | int | None) -> torch.device:
    """The device of that name, or the best one here; `BackendUnavailable` if it is not here."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    here = {kind: count for kind, count in counts.items() if count}
    best = next(iter(here))
    try:
        device = torch.device(best if asked is None else f"{best}:{asked}" if isinstance(asked, int) else asked)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= here.get(device.type, 0):
        raise BackendUnavailable(f"device {asked!r} is not here; PyTorch {torch.__version__} has {here}")
    return device if device.type != "cuda" else torch.device("cuda", device.index or 0)


def streams(device: torch.device) -> tuple[Any, Callable[[], Any]]:
    """(the stream of the operators, which is the current one where they are called, what makes a lane's)."""
    if device.type == "cpu":
        return HostStream(), HostStream
    if device.type == "mps":
        return streams_of(torch.mps, tuple)
    return streams_of(torch.cuda, lambda: (torch.cuda.current_stream(device),), lambda: torch.cuda.Stream(device))
