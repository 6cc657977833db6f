"""A whole machine from its nominal figures, by what this port reaches of its device's; it measures nothing.

The efficiencies were measured on one H100 (README.md of this folder), relative to what cuBLAS and a large copy
sustained in the same runs: 762 TFLOP/s and 2.9 TB/s. Another device's figures carry its own sustained share of its data
sheet, so that a card that its power limits is not taken for an H100 with other numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from flexref.machine.curves import Curve, Surface
from flexref.machine.machine import HOST_ATTENTION, WEIGHT_FILE, HostSeconds, Machine, Port, attention_key
from flexref.machine.nominal_facts import NominalFacts
from flexref.units import STORED_BYTES

# The CUDA port, as far as a plan must know it

SCRATCH_BYTES = 205_586_432
"""What the port holds for itself on the device (device.py)."""

FUSED_ROWS = 128
"""Products of up to so many tokens read codes directly (products.py)."""

CODES = ("int4", "int8")
"""Weights that these products read."""

HOST_RESERVE = 0.06
"""The share of free host memory that the port leaves to the system (backend.py)."""

HEAD_WIDTHS = (64, 80, 128)
"""Head widths that attention has kernels of its own for; measured at 128, taken to be alike."""

# Bytes

EXPANDED_BYTES = 2.0
"""Of an element as cuBLAS multiplies it."""

RESULT_BYTES = 3.7
"""Of the pass that adds the bias, per token and root of the matrix's elements: the four products of OPT-6.7B spend 145
of 2325 us with 4096 tokens on it, and the roots of their elements sum to 6.73 widths."""

# Shares of the sustained rates, and fixed seconds

DENSE_READ = 0.84
"""Float16 weights, few tokens: four products of 403 MB in 181 us, 4 us each of them fixed: 2.44 of 2.9 TB/s."""

DENSE_EXPONENT = 3.0
"""Reading and multiplying overlap: (read^3 + multiply^3)^(1/3) meets 180, 187, 194, 322 us at 32, 64, 128, 512 tokens
to within 5 % (a sharp maximum would be 10 % low at 512, a sum 40 % high)."""

FUSED_READ = 0.87
"""8-bit codes, one token, on an H200 (4.3 TB/s): 214 MB in 73 us, 4 us each of four products fixed."""

FUSED_DECODE = 184.0
"""Multiplications and additions of the tensor cores in whose time a code is decoded, whatever memory does: 4-bit codes,
one token, on an H200, 201 million in 65 us, 4 us each of four products fixed."""

FUSED_MATRIX = 0.46
"""Codes, 16 to 64 tokens, on an H200: 1.15 us for a token more, 350 of 762 TFLOP/s. Decoding and multiplying add up:
132 us with 4-bit codes and 64 tokens, 109 with 8-bit codes and 32."""

EXPAND = 0.945
"""Expansion writes float16: 2.74 of 2.9 TB/s."""

DECODE_ATTENTION = {"none": 0.99, "int4": 0.707}
"""64 rows of 513 tokens: 2.87 and 2.05 of 2.9 TB/s of records."""

PREFILL_ATTENTION = 0.131
"""8 rows of 512 tokens: 100 of 762 TFLOP/s of visible products."""

POINTWISE = 0.85
"""Of the sustained memory rate, for operators that read and write once; assumed, since none of them was timed alone."""

DENSE_S, FUSED_S, KERNEL_S = 4e-6, 4e-6, 3e-6
"""The start and end of a product by cuBLAS with its bias, of a fused product, and of any other kernel."""

SAMPLE_S = 3e-5
"""The choice of tokens with the copy of the result to the host; assumed."""

LINK_S = 2.75e-6
"""Of one copy over the link: 64 KiB at 16.6, 1 MiB at 47 and 16 MiB at 54.6 GB/s on the H100 (55.2 for large ones);
a T4's 64 kB at 7.8 of 12.3 GB/s say 3.0e-6."""

DISK_S = 1e-4
"""Of one request to an NVMe disk; assumed."""

LINK_TAKES = 0.75
"""What a byte over the link takes from the host's memory, for attention there: 16 threads of an H200's host read 91
GB/s, and 52 beside a link that moved 52."""

LEAST_LEFT = 0.1
"""The share of its memory rate that is left to the host in any case; assumed."""

ONE_CORE_COPY = 0.05
"""Of the host's memory rate: rows that one thread gathers (10 GB/s by one thread of the H100's host, 56 by 16)."""

HOST_ROWS_S = 1e-5
"""Of one such gathering; assumed."""

CALLS = {
    **{"call": 1.0, "submission": 5.0, "visit": 7.5, "choice": 37.5, "choice_row": 0.625},
    **{"replay": 0.5, "record": 2.5},
}
"""The engine's own work on the host, in calls of an operator: 8 us, and 40, 60, 300, 5 us on the H100's host; 4 us for
a replay, 20 for each operator that is recorded. It is nearly all Python: a slower core takes longer for all alike."""

RECORDED_BYTES, RECORDING_BYTES, RECORDED_CALL_BYTES = 64 << 20, 64 << 10, 16 << 10
"""Of the scratch, what recordings may hold; what one of them counts for, and each operator in it (recording.py)."""

COPY_SIZES = tuple(float(1 << exponent) for exponent in range(10, 31))
"""Bytes at which curves have points; a power law between doublings is within 2 % of a fixed cost and a rate."""

FLOPS = tuple(float(1 << exponent) for exponent in range(20, 43, 2))
"""FLOPs at which prefill attention has points."""

ELEMENTS = tuple(float(1 << exponent) for exponent in (12, 16, *range(18, 29), 32))
"""Elements of a matrix at which products have points."""

TOKENS = tuple(
    float(tokens) for tokens in (1, 2, 4, 8, 16, 32, 64, 65, 128, 129, *(1 << power for power in range(8, 16)))
)
"""Tokens at which products have points: the ends of those that read codes among them."""


@dataclass(frozen=True, slots=True)
class _Rates:
    """What a device sustains, in bytes and FLOPs per second."""

    memory: float
    matrix: float

    def dense(self, elements: float, tokens: float) -> float:
        """Seconds of a product with float16 weights, bias included."""
        read = elements * EXPANDED_BYTES / (self.memory * DENSE_READ)
        multiply = 2 * elements * tokens / self.matrix
        bias = RESULT_BYTES * tokens * math.sqrt(elements) / self.memory
        # The larger part stands outside, so that no power of a small one is lost.
        longer, shorter = max(read, multiply), min(read, multiply)
        both = longer * float(1 + (shorter / longer) ** DENSE_EXPONENT) ** (1 / DENSE_EXPONENT)
        return float(DENSE_S + both + bias)

    def expand(self, stored: str, elements: float) -> float:
        """Seconds to make float16 of stored weights."""
        return KERNEL_S + elements * (STORED_BYTES[stored] + EXPANDED_BYTES) / (self.memory * EXPAND)

    def fused(self, stored: str, elements: float, tokens: float) -> float:
        """Seconds of a product that reads codes."""
        read = elements * STORED_BYTES[stored] / (self.memory * FUSED_READ)
        multiply = 2 * elements * tokens / (self.matrix * FUSED_MATRIX)
        return FUSED_S + max(read, FUSED_DECODE * elements / self.matrix) + multiply

    def product(self, stored: str, elements: float, tokens: float) -> float:
        """Seconds of a product with weights as they are stored."""
        if stored == "float16":
            return self.dense(elements, tokens)
        if stored in CODES and tokens <= FUSED_ROWS:
            return self.fused(stored, elements, tokens)
        return self.expand(stored, elements) + self.dense(elements, tokens)


def machine_of(facts: NominalFacts) -> Machine:
    """The machine that `facts` describe, with the CUDA port; its `sources` repeat theirs."""
    rates = _Rates(
        facts["device_memory_peak"] * facts["device_memory_sustained"],
        facts["matrix_peak"] * facts["matrix_sustained"],
    )
    assumed = facts.assumed()
    return Machine(
        name=facts.name,
        port=Port(
            "cupy",
            "float16",
            True,
            True,
            True,
            SCRATCH_BYTES + RECORDED_BYTES,
            FUSED_ROWS,
            recorded_bytes=RECORDED_BYTES,
            recording_bytes=RECORDING_BYTES,
            recorded_call_bytes=RECORDED_CALL_BYTES,
        ),
        capacity_bytes=_capacities(facts),
        copies=_copies(facts),
        beside={
            "host->device": {"device->host": max(1.0, facts["link_in"] / facts["link_in_beside_out"])},
            "device->host": {"host->device": max(1.0, facts["link_out"] / facts["link_out_beside_in"])},
            **_host_beside_links(facts),
        },
        products={stored: _products(rates, stored) for stored in STORED_BYTES},
        expansions={stored: _curve(partial(rates.expand, stored), ELEMENTS) for stored in _EXPANDED},
        decode_attention=_decode_attention(facts, rates),
        prefill_attention=_prefill_attention(facts, rates),
        operators=_operators(facts, rates),
        host_s=HostSeconds(**{name: calls * facts["operator_call"] for name, calls in CALLS.items()}),
        sources={
            "about": facts.about,
            "efficiencies": "measured on an H100 relative to what it sustains (flexref_cupy/nominal.py)",
            "port": "as it is with numba (flexref[numba]), without which it does not attend on the host",
            **{name: f"{figure.value:g} {figure.unit}: {figure.source}" for name, figure in facts.figures.items()},
        },
        warnings=(f"assumed, not measured: {', '.join(assumed)}",) if assumed else (),
    )


_EXPANDED = tuple(stored for stored in STORED_BYTES if stored != "float16")


def _curve(seconds: Callable[[float], float], sizes: Sequence[float]) -> Curve:
    return Curve(tuple((size, seconds(size)) for size in sizes))


def _products(rates: _Rates, stored: str) -> Surface:
    return Surface(tuple((elements, _curve(partial(rates.product, stored, elements), TOKENS)) for elements in ELEMENTS))


def _capacities(facts: NominalFacts) -> dict[str, int]:
    """Bytes that may be planned with: the port's scratch, which every plan counts, among them."""
    device = facts["device_memory"] - facts["device_reserved"]
    host = (facts["host_memory"] - facts["host_reserved"]) * (1 - HOST_RESERVE)
    return {"device": int(device), "host": int(host), "disk": int(facts["disk"] - facts["disk_reserved"])}


def _copies(facts: NominalFacts) -> dict[str, Curve]:
    read = Curve.of_rate(facts["disk_read"], DISK_S, COPY_SIZES)
    return {
        "host->device": Curve.of_rate(facts["link_in"], LINK_S, COPY_SIZES),
        "device->host": Curve.of_rate(facts["link_out"], LINK_S, COPY_SIZES),
        "disk->host": read,
        "host->disk": Curve.of_rate(facts["disk_write"], DISK_S, COPY_SIZES),
        WEIGHT_FILE: read,
    }


def _decode_attention(facts: NominalFacts, rates: _Rates) -> dict[str, Curve]:
    """Over bytes of records."""
    curves = {}
    for scheme, share in DECODE_ATTENTION.items():
        on_host = _host_attention(facts, scheme)
        for width in HEAD_WIDTHS:
            curves[attention_key("device", scheme, width)] = Curve.of_rate(rates.memory * share, KERNEL_S, COPY_SIZES)
            curves[attention_key("host", scheme, width)] = Curve.of_rate(on_host, HOST_ROWS_S, COPY_SIZES)
    return curves


def _host_attention(facts: NominalFacts, scheme: str) -> float:
    """Bytes of records per second: as fast as cores and memory are. A 4-bit number costs cores as much as a float16 one
    (6.7 and 7.0 billion a second on one core)."""
    by_cores = facts["host_attention"] * (1 if scheme == "none" else STORED_BYTES["int4"] / 2)
    return min(by_cores, facts["host_memory_rate"])


def _host_beside_links(facts: NominalFacts) -> dict[str, dict[str, float]]:
    """How many times as long attention on the host takes while a link takes its part of the memory's rate."""
    memory, found = facts["host_memory_rate"], dict[str, dict[str, float]]()
    for scheme, name in HOST_ATTENTION.items():
        alone = _host_attention(facts, scheme)
        for link, figure in (("host->device", "link_in"), ("device->host", "link_out")):
            left = max(memory * LEAST_LEFT, memory - LINK_TAKES * facts[figure])
            found.setdefault(name, {})[link] = max(1.0, alone / left)
    return found


def _prefill_attention(facts: NominalFacts, rates: _Rates) -> dict[str, Curve]:
    """Over FLOPs of visible products."""
    device = Curve.of_rate(rates.matrix * PREFILL_ATTENTION, KERNEL_S, FLOPS)
    host = Curve.of_rate(facts["host_matrix"], HOST_ROWS_S, FLOPS)
    return {
        attention_key(place, scheme, width): curve
        for place, curve in (("device", device), ("host", host))
        for scheme in DECODE_ATTENTION
        for width in HEAD_WIDTHS
    }


def _operators(facts: NominalFacts, rates: _Rates) -> Mapping[str, Curve]:
    """Over bytes of the result; a pass's traffic is a multiple of them."""

    def passing(times: float, fixed_s: float = KERNEL_S) -> Curve:
        return Curve.of_rate(rates.memory * POINTWISE / times, fixed_s, COPY_SIZES)

    one_core = Curve.of_rate(facts["host_memory_rate"] * ONE_CORE_COPY, HOST_ROWS_S, COPY_SIZES)
    quantizing = (2.0 + STORED_BYTES["int4"]) / STORED_BYTES["int4"]
    return {
        **dict.fromkeys(("layer_norm", "activate", "gather", "assign", "append none"), passing(2)),
        "add_rows": passing(3),
        "append int4": passing(quantizing),
        "sample": passing(2, SAMPLE_S),
        **dict.fromkeys(("token rows", "append none host", "append int4 host"), one_core),
    }
