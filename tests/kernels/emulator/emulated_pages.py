"""Memory of an emulated device: pages full of 0xff between pages that nobody may access; it knows no kernel."""

import ctypes
import mmap
import os
from functools import cache
from typing import Any

PAGE_BYTES = 4096
ALIGNMENT_BYTES = 256
"""What cudaMalloc aligns to."""

POISON_BYTES = 4 << 20
"""Fresh memory is so many bytes of 0xff again and again, which take room only where they are written."""

PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000
"""Linux's, which Python 3.10 has no names for."""


class Pages:
    """`nbytes` from `address` on, at whose end, but for the alignment, no access is possible."""

    def __init__(self, nbytes: int) -> None:
        """`MemoryError` if the system refuses."""
        data_bytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        self.nbytes, self._mapped_bytes = nbytes, data_bytes + 2 * PAGE_BYTES
        private = mmap.MAP_PRIVATE | MAP_NORESERVE
        self._start = _map(0, self._mapped_bytes, PROT_NONE, private | mmap.MAP_ANONYMOUS, -1)
        data, access = self._start + PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE
        for offset in range(0, data_bytes, POISON_BYTES):
            _map(data + offset, min(POISON_BYTES, data_bytes - offset), access, private | MAP_FIXED, _poison())
        self.address = data + (data_bytes - nbytes) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self.alive = True

    def holds(self, address: int) -> bool:
        """Whether something lies there."""
        return self.address <= address < self.address + self.nbytes

    def free(self) -> None:
        """Give the memory back."""
        self.alive = False
        _libc().munmap(self._start, self._mapped_bytes)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    integers = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *integers, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


@cache
def _poison() -> int:
    """A file of 0xff, without a name."""
    file = os.memfd_create("poison")
    with open(file, "wb", closefd=False) as writer:
        writer.write(b"\xff" * POISON_BYTES)
    return file


def _map(address: int, nbytes: int, protection: int, flags: int, file: int) -> int:
    found = _libc().mmap(address or None, nbytes, protection, flags, file, 0)
    if found in {None, ctypes.c_void_p(-1).value}:
        raise MemoryError(f"mmap of {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
    return int(found)
