"""Buffers of bytes on a device and on its host, and copies between them; it knows no operator."""

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from flexref.backend.host_pages import aligned_bytes, present
from flexref.backend.lane_threads import StreamLanes
from flexref.backend.results import CountedResults, view_end
from flexref.errors import CapacityError
from flexref_torch.operators import Array


class DeviceMemory(CountedResults, StreamLanes):
    """The part of the port that is about memory: a buffer is an array of bytes, pinned on the host of a CUDA device."""

    _device: torch.device

    def free_bytes(self, tier: str) -> int:
        available = int(psutil.virtual_memory().available)
        if self._device.type != "cuda":
            return available // 2
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return available if tier == "host" else int(torch.cuda.mem_get_info(self._device)[0]) + kept

    def allocate(self, tier: str, nbytes: int) -> Array:
        """Raises `CapacityError` if a device has no room, or the system cannot pin so much."""
        if tier == "device" and self._device.type != "cpu":
            try:
                return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError as error:
                raise CapacityError("device", "a buffer", nbytes, self.free_bytes("device"), {}) from error
        if self._device.type != "cuda" or not nbytes:  # CUDA pins no memory of no bytes
            return torch.from_numpy(aligned_bytes(nbytes))
        memory = present(nbytes, lambda: self.free_bytes("host"))
        if int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, nbytes, 0)):
            with suppress(RuntimeError):  # CUDA keeps the failure, and PyTorch would blame the next kernel for it
                torch.ones(1, device=self._device)
            raise CapacityError("host", "a pinned buffer", nbytes, self.free_bytes("host"), {})
        return torch.from_numpy(memory)

    def release(self, buffer: Array) -> None:
        """The memory goes with the last view of it; pinned memory is the system's again."""
        pinned = self._device.type == "cuda" and not buffer.is_cuda and buffer.nbytes
        if pinned and (status := int(torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr()))):
            raise RuntimeError(f"pinned memory could not be given back: CUDA's error {status}")

    def view(self, buffer: Array, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        return buffer[offset : view_end(buffer, offset, shape, dtype)].view(getattr(torch, dtype)).view(shape)

    def _fresh(self, shape: tuple[int, ...], dtype: str) -> Array:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)

    def host_memory(self, buffer: Array) -> npt.NDArray[np.uint8]:
        return buffer.numpy()  # type: ignore[no-any-return]

    def upload(self, values: npt.NDArray[Any], out: Array | None = None) -> Array:
        out = self.empty(values.shape, str(values.dtype)) if out is None else out
        given = torch.from_numpy(np.array(values, order="C"))  # not pinned, so CUDA has read it when the copy returns
        return out.copy_(given, non_blocking=torch.version.cuda is not None)

    def download(self, x: Array) -> npt.NDArray[Any]:
        return np.ascontiguousarray(x.to("cpu", copy=True).numpy())

    def assign(self, target: Array, source: Array) -> None:
        """Slices of host memory go through a copy of PyTorch's own, which no operator may outrun: these wait."""
        across = target.device != source.device
        waits = not (target.is_contiguous() and source.is_contiguous()) if across else target.device.type == "cpu"
        if waits:
            self._stream.join()
        target.copy_(source, non_blocking=not waits)

    def _is_on_host(self, buffer: Array) -> bool:
        return str(buffer.device) == "cpu"

    def _copy(self, target: Array, source: Array) -> None:
        target.copy_(source, non_blocking=True)
