"""Products by cublasLt in which a row has the same bits whatever rows are beside it; no array is known here.

cuBLAS itself chooses an algorithm for every number of tokens, and some cut the inputs into parts whose sums it adds up.
Those asked for here cut nothing and need no memory to work in. Algorithms of one family differ in their tiles only:
each adds up the products of a row and a column in the order of the inputs, as many at a time as the device's own
instruction takes, so that several of them have the same bits. Which one is named follows from the shape, the device
and the library's version, and from no measurement.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from flexref_cupy.driver.cublas import check_status, cuda_library

_TRANSPOSED = 1
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32 = 68
_DESCRIPTION_TRANSPOSES_FIRST = 3
_PREFERS_MOST_WORKSPACE, _PREFERS_REDUCTIONS = 1, 3
_NO_REDUCTION = 0
_CONFIG_SPLIT_K = 2
"""Names of cublasLt: CUBLAS_OP_T, CUDA_R_32F and _16F, CUBLAS_COMPUTE_32F, CUBLASLT_MATMUL_DESC_TRANSA,
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES and _REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_NONE,
CUBLASLT_ALGO_CONFIG_SPLITK_NUM."""

CONFIG = (
    ("id", 0, ctypes.c_int32),
    ("tile", 1, ctypes.c_uint32),
    ("split_k", _CONFIG_SPLIT_K, ctypes.c_int32),
    ("reduction", 3, ctypes.c_uint32),
    ("swizzle", 4, ctypes.c_uint32),
    ("custom", 5, ctypes.c_uint32),
    ("stages", 6, ctypes.c_uint32),
    ("inner_shape", 7, ctypes.c_uint16),
    ("cluster_shape", 8, ctypes.c_uint16),
)
"""What an algorithm is made of: our name, cublasLt's attribute (CUBLASLT_ALGO_CONFIG_...), and its type."""

_FAMILY, _PARTS = 0, 2
"""Places in it."""

USUAL_TOKENS = 1024
"""The first algorithm that cublasLt names for so many tokens says which family multiplies any number of them."""

ASKED_ALGORITHMS = 8
"""How many cublasLt is to name: on devices of compute capability 9 the first one is of the family."""

MOST_CALLS = 4096
"""Shapes whose descriptions are kept; with one more all of them are made anew when they are needed."""

_TYPES = {"float32": _FLOAT32, "float16": _FLOAT16}


class _Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way of multiplying: cublasLt's own bytes, and the numbers in CONFIG's order that they stand for."""

    data: bytes
    config: tuple[int, ...]


_Call = tuple[bytes, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
"""An algorithm, and the layouts of w, x and out."""


class CublasLt:
    """cublasLt on one stream."""

    def __init__(self, stream: int, library: Any = None) -> None:
        """`library` takes the place of cublasLt. Raises `BackendUnavailable`."""
        self._library = library = cuda_library("cublasLt", "cublasLt") if library is None else library
        self._stream = stream
        address = ctypes.c_void_p
        self._handle = address()
        check_status("cublasLtCreate", library.cublasLtCreate(ctypes.byref(self._handle)))
        self._description = address()
        made = library.cublasLtMatmulDescCreate(ctypes.byref(self._description), _COMPUTE_FLOAT32, _FLOAT32)
        check_status("cublasLtMatmulDescCreate", made)
        transposed = ctypes.c_int32(_TRANSPOSED)
        done = library.cublasLtMatmulDescSetAttribute(
            self._description,
            _DESCRIPTION_TRANSPOSES_FIRST,
            ctypes.byref(transposed),
            ctypes.c_size_t(ctypes.sizeof(transposed)),
        )
        check_status("cublasLtMatmulDescSetAttribute", done)
        self._preference = address()
        check_status(
            "cublasLtMatmulPreferenceCreate", library.cublasLtMatmulPreferenceCreate(ctypes.byref(self._preference))
        )
        for attribute, value in (
            (_PREFERS_MOST_WORKSPACE, ctypes.c_uint64(0)),
            (_PREFERS_REDUCTIONS, ctypes.c_uint32(_NO_REDUCTION)),
        ):
            done = library.cublasLtMatmulPreferenceSetAttribute(
                self._preference, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
            )
            check_status("cublasLtMatmulPreferenceSetAttribute", done)
        self._multiply = library.cublasLtMatmul
        self._multiply.argtypes = (
            *(address, address, address, address, address, address, address, address),
            *(address, address, address, address, address, address, ctypes.c_size_t, address),
        )
        self._layouts: dict[tuple[int, int, int, int], ctypes.c_void_p] = {}
        self._calls: dict[tuple[tuple[int, int, int], tuple[int, int, int], str], _Call] = {}
        self._usual: dict[tuple[int, int, tuple[int, int, int], str], Algorithm] = {}
        self._factors = (ctypes.c_float * 2)(0.0, 1.0)
        self._zero = ctypes.addressof(self._factors)
        self._one = self._zero + ctypes.sizeof(ctypes.c_float)

    def version(self) -> int:
        """cublasLt's version."""
        self._library.cublasLtGetVersion.restype = ctypes.c_size_t
        return int(self._library.cublasLtGetVersion())

    def close(self) -> None:
        """Give cublasLt's own memory back."""
        self._forget()
        self._library.cublasLtMatmulPreferenceDestroy(self._preference)
        self._library.cublasLtMatmulDescDestroy(self._description)
        check_status("cublasLtDestroy", self._library.cublasLtDestroy(self._handle))

    def algorithms(
        self, shape: tuple[int, int, int], pitches: tuple[int, int, int], dtype: str, most: int
    ) -> list[Algorithm]:
        """Up to `most` for products of `shape` (T, O, I), the fastest first as cublasLt sees it.

        None cuts the inputs into parts or needs memory to work in. pitches: of x, w and out.
        """
        found, count = (_Found * most)(), ctypes.c_int()
        left, right, out = self._operands(shape, pitches, dtype)
        status = self._library.cublasLtMatmulAlgoGetHeuristic(
            *(self._handle, self._description, left, right, out, out, self._preference),
            *(most, found, ctypes.byref(count)),
        )
        check_status(f"cublasLtMatmulAlgoGetHeuristic of {shape}", status)
        named = [self._named(each.algorithm) for each in found[: count.value] if each.state == 0 and not each.workspace]
        return [each for each in named if each.config[_PARTS] in (0, 1)]

    def multiply(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """See `Cuda.multiply_apart`."""
        pitches = x[1], w[1], out[1]
        key = shape, pitches, out[2]
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._call(shape, pitches, out[2])
        algorithm, left, right, result = call
        status = self._multiply(
            *(self._handle, self._description, self._one, w[0], left, x[0], right),
            *(self._one if add else self._zero, out[0], result, out[0], result),
            *(algorithm, None, 0, self._stream),
        )
        if status:
            check_status(f"cublasLtMatmul of {shape}", status)

    def chosen(self, shape: tuple[int, int, int], pitches: tuple[int, int, int], dtype: str) -> Algorithm:
        """The algorithm for products of `shape`: the first one named for it that is of the matrix' family.

        Where none is, the one for the usual number of tokens. `RuntimeError` if cublasLt names none for that.
        """
        _, outputs, inputs = shape
        key = outputs, inputs, pitches, dtype
        if key not in self._usual:
            named = self.algorithms((USUAL_TOKENS, outputs, inputs), pitches, dtype, ASKED_ALGORITHMS)
            if not named:
                raise RuntimeError(f"cublasLt has no algorithm for a matrix {outputs, inputs} that cuts no inputs")
            self._usual[key] = named[0]
        usual = self._usual[key]
        named = self.algorithms(shape, pitches, dtype, ASKED_ALGORITHMS)
        return next((each for each in named if each.config[_FAMILY] == usual.config[_FAMILY]), usual)

    def _call(self, shape: tuple[int, int, int], pitches: tuple[int, int, int], dtype: str) -> _Call:
        algorithm = self.chosen(shape, pitches, dtype)
        if len(self._calls) >= MOST_CALLS:
            self._forget()
        return algorithm.data, *self._operands(shape, pitches, dtype)

    def _forget(self) -> None:
        self._calls.clear()
        for layout in self._layouts.values():
            self._library.cublasLtMatrixLayoutDestroy(layout)
        self._layouts.clear()

    def _operands(
        self, shape: tuple[int, int, int], pitches: tuple[int, int, int], dtype: str
    ) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
        """Layouts of w, x and out: rows of ours are columns of BLAS, so out^T = w x^T."""
        tokens, outputs, inputs = shape
        return (
            self._layout(inputs, outputs, pitches[1], _FLOAT16),
            self._layout(inputs, tokens, pitches[0], _FLOAT16),
            self._layout(outputs, tokens, pitches[2], _TYPES[dtype]),
        )

    def _layout(self, rows: int, columns: int, pitch: int, kind: int) -> ctypes.c_void_p:
        key = rows, columns, pitch, kind
        if key not in self._layouts:
            layout = ctypes.c_void_p()
            made = self._library.cublasLtMatrixLayoutCreate(
                ctypes.byref(layout), kind, *map(ctypes.c_uint64, (rows, columns)), ctypes.c_int64(pitch)
            )
            check_status("cublasLtMatrixLayoutCreate", made)
            self._layouts[key] = layout
        return self._layouts[key]

    def _named(self, algorithm: _Algorithm) -> Algorithm:
        numbers = []
        for name, attribute, kind in CONFIG:
            value, written = kind(), ctypes.c_size_t()
            status = self._library.cublasLtMatmulAlgoConfigGetAttribute(
                *(ctypes.byref(algorithm), attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))),
                ctypes.byref(written),
            )
            check_status(f"cublasLtMatmulAlgoConfigGetAttribute of {name}", status)
            numbers.append(int(value.value))
        return Algorithm(bytes(algorithm), tuple(numbers))
