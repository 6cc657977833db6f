"""Runs kernels that are written into a test on the emulated device; it knows none of them."""

from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from emulated_cuda import EmulatedCuda
from flexref_cupy.driver.kernel_source import Source
from flexref_cupy.driver.launching import Kernel

COMMON = (files("flexref_cupy") / "kernels" / "common.cuh").read_text(encoding="utf-8")
NO_COMPILER = "no C++ compiler (g++, or $CXX) to emulate kernels with"

Values = npt.NDArray[Any]


class KernelBench:
    """Runs kernels that are written into a test, on arrays that it puts onto the device."""

    def __init__(self) -> None:
        self.cuda = EmulatedCuda(capability=(8, 0))
        self._addresses: list[int] = []

    def put(self, values: Values) -> int:
        """The address of a copy on the device; nothing may be accessed beyond its end."""
        address = self.cuda.allocate(values.nbytes)
        self._addresses.append(address)
        source = np.ascontiguousarray(values)
        self.cuda.copy(address, source.ctypes.data, values.nbytes, self.cuda.compute_stream)
        return address

    def get(self, address: int, shape: tuple[int, ...], dtype: str) -> Values:
        """What lies on the device."""
        values = np.empty(shape, dtype)
        self.cuda.copy(values.ctypes.data, address, values.nbytes, self.cuda.compute_stream)
        return values

    def start(
        self, parameters: str, body: str, *arguments: float, blocks: int = 1, threads: int = 32, shared_bytes: int = 0
    ) -> None:
        """Run a kernel of these parameters with this body."""
        text = f'{COMMON}\n#line 1 "tried.cu"\nextern "C" __global__ void tried({parameters}) {{\n{body}\n}}\n'
        packing = "=" + "".join("d" if "double" in part and "*" not in part else "q" for part in parameters.split(","))
        module = self.cuda.compile(Source("tried", text, (), {"tried": packing}))
        kernel = Kernel(self.cuda, "tried", self.cuda.function(module, "tried", shared_bytes), packing)  # type: ignore[arg-type]
        kernel((blocks, 1, 1), threads, *arguments, shared_bytes=shared_bytes)

    def map(self, body: str, *operands: Values, out: str) -> Values:
        """`out[n] = ...` of operands a, b, c, one thread for each n; `body` says it."""
        count = len(operands[0])
        types = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
        names = [f"const {types[x.dtype.itemsize]}* {name}" for name, x in zip("abc", operands, strict=False)]
        result = self.put(np.zeros(count, out))
        guarded = f"const integer n = blockIdx.x * blockDim.x + threadIdx.x;\nif (n < count) {{ {body} }}"
        parameters = ", ".join((*names, f"{types[np.dtype(out).itemsize]}* out", "integer count"))
        addresses = [self.put(x) for x in operands]
        self.start(parameters, guarded, *addresses, result, count, blocks=-(-count // 256), threads=256)
        return self.get(result, (count,), out)

    def close(self) -> None:
        """Give all memory back."""
        for address in self._addresses:
            self.cuda.free(address)
