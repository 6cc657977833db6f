"""From the name of a scheme to the function that makes its groups; it knows no file."""

import numpy.typing as npt

from flexref.storage.quant import Array, Quantized, quantize
from flexref.storage.quant_fit import quantize_least_squares


def quantize_as(scheme: str, values: Array, group_size: int, scale_dtype: npt.DTypeLike, what: str) -> Quantized:
    """Values (O, I) in the groups of `scheme`; `QuantizationError` names `what` where they cannot be quantized.

    `ValueError` for a scheme whose codes do not follow from the values alone.
    """
    if scheme == "int4":
        return quantize(values, group_size, scale_dtype, what)
    if scheme == "int8":
        return quantize(values, group_size, scale_dtype, what, bits=8)
    if scheme == "int4-mse":
        return quantize_least_squares(values, group_size, scale_dtype, what)
    raise ValueError(f"{what}: the codes of scheme {scheme!r} do not follow from the values alone")
