"""Says how much a profile measures: sizes, repeats and bounds, as data; it measures nothing."""

import math
from dataclasses import dataclass, replace

from flexref.units import GIB, KIB, MIB

QUICK_S = 5.0
"""What a quick profile may take: it stands between a user and the first token."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The points of all curves, and the bounds of the seconds and bytes that measuring them takes.

    Time. `bound_s`: the whole profile, without the first point of every curve (see `pace`). `repeats`: windows of
    calls, of which the median counts; `window_s`: the least length of a window of short calls. `longest_s`: a curve
    ends after a call that takes longer; `product_longest_s`: the same for products; `products_s`: after so long, no
    wider matrix is begun. `heat_s`: heavy products run so long before they are timed, since a device that draws much
    power slows down. `busy_s`: the least length of the product that keeps a device busy.

    Memory. `most_bytes`: of every tier, or a quarter of what is free if that is less. `rotated_bytes`: operands that
    take turns, more than a device's caches hold.

    Links. `copies`: bytes of a copy to or from the device, within buffers of `linked_bytes`, for `sustained_s` at each
    size. `spills`: bytes of a piece of a spill file. `reads`: bytes of a read of a weight file of `file_bytes`.
    `disk_bytes`: moved to or from disk at each size. `beside_s`: how long two resources work side by side; in that time
    the disk moves at most `beside_disk_bytes`, in pieces of `beside_piece_bytes`.

    Operators. `widths` of square matrices, `tokens` multiplied with them, `elements` of expanded matrices.
    `head_widths` and `host_head_widths`: of attention on the device and the host, `attention_width` wide in all, or
    narrower on a port that computes on the host. `decode`: (rows, context); `prefill`, `appends`: (rows, new tokens).
    `pointwise_tokens` of `pointwise_width` for the other operators; `sampled_rows` of a `vocabulary`.

    The engine. `layers`, `groups`, `rows`, `passes` of the small jobs that show what its own work takes.
    """

    bound_s: float
    repeats: int
    window_s: float
    longest_s: float
    product_longest_s: float
    products_s: float
    heat_s: float
    busy_s: float
    most_bytes: int
    rotated_bytes: int
    linked_bytes: int
    sustained_s: float
    copies: tuple[int, ...]
    spills: tuple[int, ...]
    reads: tuple[int, ...]
    file_bytes: int
    disk_bytes: int
    beside_s: float
    beside_disk_bytes: int
    beside_piece_bytes: int
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    elements: tuple[int, ...]
    head_widths: tuple[int, ...]
    host_head_widths: tuple[int, ...]
    attention_width: int
    decode: tuple[tuple[int, int], ...]
    prefill: tuple[tuple[int, int], ...]
    appends: tuple[tuple[int, int], ...]
    pointwise_width: int
    pointwise_tokens: tuple[int, ...]
    vocabulary: int
    sampled_rows: tuple[int, ...]
    layers: tuple[int, ...]
    groups: tuple[int, ...]
    rows: tuple[int, ...]
    passes: int

    @classmethod
    def full(cls) -> "Sizes":
        """A profile of about a minute; writes about 1 GiB to disk and reads as much."""
        return cls(
            bound_s=150.0,
            repeats=7,
            window_s=0.01,
            longest_s=0.05,
            product_longest_s=0.3,
            products_s=30.0,
            heat_s=0.3,
            busy_s=0.002,
            most_bytes=4 * GIB,
            rotated_bytes=256 * MIB,
            linked_bytes=2 * GIB,
            sustained_s=0.7,
            copies=(16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB),
            spills=(64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB),
            reads=(MIB, 4 * MIB, 16 * MIB, 64 * MIB),
            file_bytes=128 * MIB,
            disk_bytes=64 * MIB,
            beside_s=0.03,
            beside_disk_bytes=8 * MIB,
            beside_piece_bytes=2 * MIB,
            widths=(512, 1024, 2048, 4096, 8192, 12288),
            tokens=(1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192),
            elements=(1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26),
            head_widths=(64, 80, 128),
            host_head_widths=(64, 128),
            attention_width=4096,
            decode=((1, 64), (4, 64), (4, 256), (16, 512), (64, 512)),
            prefill=((1, 64), (1, 512), (4, 512), (16, 512), (4, 2048)),
            appends=((1, 1), (4, 1), (16, 1), (64, 1), (1, 512), (4, 512), (16, 512)),
            pointwise_width=2048,
            pointwise_tokens=(1, 4, 16, 64, 256, 1024, 4096, 16384),
            vocabulary=50272,
            sampled_rows=(1, 4, 16, 64),
            layers=(4, 12),
            groups=(1, 4),
            rows=(1, 64),
            passes=24,
        )

    @classmethod
    def quick(cls) -> "Sizes":
        """A profile of at most five seconds with fewer points of everything; about 100 MiB to disk and back."""
        return replace(
            cls.full(),
            bound_s=QUICK_S,
            repeats=3,
            window_s=0.004,
            longest_s=0.03,
            product_longest_s=0.04,
            products_s=3.0,
            heat_s=0.05,
            most_bytes=2 * GIB,
            rotated_bytes=128 * MIB,
            linked_bytes=128 * MIB,
            sustained_s=0.1,
            copies=(16 * KIB, 256 * KIB, 4 * MIB, 64 * MIB),
            spills=(64 * KIB, MIB, 4 * MIB),
            reads=(MIB, 8 * MIB),
            file_bytes=8 * MIB,
            disk_bytes=4 * MIB,
            beside_s=0.01,
            beside_disk_bytes=2 * MIB,
            beside_piece_bytes=MIB,
            widths=(512, 2048, 8192),
            tokens=(1, 8, 64, 256, 1024, 4096),
            elements=(1 << 18, 1 << 20, 1 << 24),
            head_widths=(64, 128),
            host_head_widths=(128,),
            decode=((1, 64), (4, 256), (16, 512), (64, 512)),
            prefill=((1, 64), (1, 512), (4, 512)),
            appends=((1, 1), (16, 1), (64, 1), (4, 512)),
            pointwise_tokens=(1, 16, 256, 2048),
            sampled_rows=(1, 16),
            rows=(1, 32),
            passes=5,
        )

    @classmethod
    def tiny(cls) -> "Sizes":
        """A profile of a second, for tests of whether it is one: its figures are worth nothing."""
        return cls(
            bound_s=math.inf,
            repeats=2,
            window_s=0.0,
            longest_s=0.02,
            product_longest_s=0.02,
            products_s=1.0,
            heat_s=0.0,
            busy_s=0.0,
            most_bytes=16 * MIB,
            rotated_bytes=64 * KIB,
            linked_bytes=256 * KIB,
            sustained_s=0.0,
            copies=(4 * KIB, 64 * KIB),
            spills=(16 * KIB, 64 * KIB),
            reads=(16 * KIB, 64 * KIB),
            file_bytes=128 * KIB,
            disk_bytes=64 * KIB,
            beside_s=0.0,
            beside_disk_bytes=64 * KIB,
            beside_piece_bytes=16 * KIB,
            widths=(64, 128),
            tokens=(1, 2, 4, 8),
            elements=(1 << 12, 1 << 14),
            head_widths=(64, 128),
            host_head_widths=(64, 128),
            attention_width=128,
            decode=((1, 4), (2, 8)),
            prefill=((1, 4), (2, 8)),
            appends=((1, 1), (2, 1), (2, 8)),
            pointwise_width=64,
            pointwise_tokens=(1, 8),
            vocabulary=128,
            sampled_rows=(1, 2),
            layers=(1, 2),
            groups=(1, 2),
            rows=(1, 2),
            passes=3,
        )
