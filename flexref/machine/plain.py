"""A machine made of a few rates, for ports that nobody has measured and for tests; it measures nothing."""

from flexref.machine.curves import Curve, Surface
from flexref.machine.machine import COPIES, HostSeconds, Machine, Port, attention_key
from flexref.units import TIERS

COPY_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28)
"""Bytes at which a plain machine's curves have points."""

ELEMENTS, TOKENS = (1 << 12, 1 << 18, 1 << 26), (1, 16, 256, 4096)
"""Elements of a matrix, and tokens, at which a plain machine's surfaces have points."""

OPERATORS = (
    *("layer_norm", "activate", "gather", "add_rows", "assign", "sample", "token rows"),
    *("append none", "append int4", "append none host", "append int4 host"),
)


def plain_machine(
    *,
    link_per_s: float = 10e9,
    disk_per_s: float = 1e9,
    memory_per_s: float = 100e9,
    flops_per_s: float = 1e12,
    fixed_s: float = 1e-6,
    capacity_bytes: tuple[int, int, int] = (1 << 30, 1 << 33, 1 << 36),
    asynchronous: bool = True,
) -> Machine:
    """A machine with one rate for both links to the device, one for the disk, one for device memory, one for products.

    A product takes `fixed_s` and the longer of reading its matrix and computing; 4-bit matrices are a quarter as long
    to read. Nothing slows anything else.
    """
    copies = {
        name: Curve.of_rate(disk_per_s if "disk" in name or "file" in name else link_per_s, fixed_s, COPY_SIZES)
        for name in COPIES
    }
    memory = Curve.of_rate(memory_per_s, fixed_s, COPY_SIZES)
    attention = Curve.of_rate(flops_per_s, fixed_s, COPY_SIZES)
    keys = [
        attention_key(place, scheme, width)
        for place in ("device", "host")
        for scheme in ("none", "int4")
        for width in (64, 128)
    ]

    def products(bytes_each: float) -> Surface:
        def seconds(elements: int, tokens: int) -> float:
            return fixed_s + max(elements * bytes_each / memory_per_s, 2.0 * elements * tokens / flops_per_s)

        return Surface(
            tuple(
                (float(elements), Curve(tuple((float(tokens), seconds(elements, tokens)) for tokens in TOKENS)))
                for elements in ELEMENTS
            )
        )

    return Machine(
        name="plain",
        port=Port("numpy", "float32", asynchronous, True, True, scratch_bytes=0, fused_rows=0),
        capacity_bytes=dict(zip(TIERS, capacity_bytes, strict=True)),
        copies=copies,
        beside={},
        products={"float16": products(2), "float32": products(4), "int4": products(0.5625)},
        expansions={"int4": memory, "int8": memory, "float16": memory},
        decode_attention=dict.fromkeys(keys, memory),
        prefill_attention=dict.fromkeys(keys, attention),
        operators=dict.fromkeys(OPERATORS, memory),
        host_s=HostSeconds(call=1e-6, submission=1e-5, visit=1e-5, choice=1e-4, choice_row=1e-6),
    )
