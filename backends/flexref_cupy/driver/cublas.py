"""Products by cuBLAS, asked directly; it knows addresses and a stream, and no array."""

import ctypes

from flexref.errors import BackendUnavailable
from flexref_cupy.driver.installation import INSTALL, first_line

_TRANSPOSED, _AS_IT_IS = 1, 0
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32 = 68
_ALGORITHM_DEFAULT = 99
_FULL_PRECISION_REDUCTION = 16
"""Names of cuBLAS: CUBLAS_OP_T and _N, CUDA_R_32F and _16F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP,
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION."""

_TYPES = {"float32": _FLOAT32, "float16": _FLOAT16}


class Cublas:
    """cuBLAS on one stream, asked directly.

    CuPy's own calls set the stream to CuPy's current one each time, which also takes cuBLAS' workspace away.
    """

    def __init__(self, stream: int) -> None:
        library = cuda_library("cublas", "cuBLAS")
        self._multiply = library.cublasGemmEx
        number, address = ctypes.c_int, ctypes.c_void_p
        operand = (address, number, number)
        self._multiply.argtypes = (
            *(address, number, number, number, number, number),
            *(address, *operand, *operand, address, *operand, number, number),
        )
        self._set_workspace = library.cublasSetWorkspace_v2
        self._set_workspace.argtypes = (address, address, ctypes.c_size_t)
        handle = ctypes.c_void_p()
        check_status("cublasCreate", library.cublasCreate_v2(ctypes.byref(handle)))
        check_status("cublasSetStream", library.cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
        # Products that are cut along their inputs are to be added up in float32 too, whatever type the result has.
        mode = library.cublasSetMathMode(handle, _FULL_PRECISION_REDUCTION)
        check_status("cublasSetMathMode", mode)
        self._handle = handle.value
        self._destroy = library.cublasDestroy_v2
        self._destroy.argtypes = (address,)
        # The factors 0 and 1 of BLAS, which lie on the host.
        self._factors = (ctypes.c_float * 2)(0.0, 1.0)
        self._zero = ctypes.addressof(self._factors)
        self._one = self._zero + ctypes.sizeof(ctypes.c_float)

    def close(self) -> None:
        """Give cuBLAS' own memory back."""
        check_status("cublasDestroy", self._destroy(self._handle))

    def work_in(self, address: int, nbytes: int) -> None:
        """See `Cuda.products_in`."""
        check_status("cublasSetWorkspace", self._set_workspace(self._handle, address, nbytes))

    def multiply(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """See `Cuda.multiply`: rows of ours are columns of BLAS, so out^T = w x^T."""
        tokens, outputs, inputs = shape
        status = self._multiply(
            *(self._handle, _TRANSPOSED, _AS_IT_IS, outputs, tokens, inputs),
            *(self._one, w[0], _FLOAT16, w[1], x[0], _FLOAT16, x[1]),
            *(self._one if add else self._zero, out[0], _TYPES[out[2]], out[1]),
            *(_COMPUTE_FLOAT32, _ALGORITHM_DEFAULT),
        )
        if status:
            check_status(f"cublasGemmEx of {shape}", status)


def cuda_library(name: str, shown: str) -> ctypes.CDLL:
    """A library of CuPy's CUDA; `BackendUnavailable` that calls it as `shown`."""
    from cuda import pathfinder  # noqa: PLC0415 - comes with CuPy

    try:
        path = pathfinder.load_nvidia_dynamic_lib(name).abs_path
    except pathfinder.DynamicLibNotFoundError as error:
        raise BackendUnavailable(f"{shown} is not installed ({first_line(error)}): {INSTALL}") from error
    return ctypes.CDLL(str(path))


def check_status(call: str, status: int) -> None:
    """`RuntimeError` if a call of such a library has failed."""
    if status:
        raise RuntimeError(f"{call} gives status {status}")
