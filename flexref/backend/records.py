"""How one token lies in the KV cache: offsets inside a record; it knows no array and no port."""

from dataclasses import dataclass

from flexref.errors import PolicyError
from flexref.units import DTYPE_BYTES, aligned

SECTION_BYTES = 16
"""Every section of a record starts at a multiple of it, so that a port may load 16 bytes at a time."""


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """A record holds K and V of one token: `K codes | K pairs | V codes | V pairs` or, unquantized, `K | V`.

    Quantized in groups along the head axis (D), codes uint8 (H, packed head width) and pairs float16 (H, groups, 2):
    scale, then zero. Unquantized: `dtype` (H, D). A row's cache is its records one after the other.
    """

    heads: int
    head_width: int
    dtype: str
    scheme: str = "none"
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.scheme not in ("none", "int4"):
            raise PolicyError(f"unknown cache scheme {self.scheme!r}; known: none, int4")

    @property
    def quantized(self) -> bool:
        """Whether K and V are stored in 4-bit groups."""
        return self.scheme == "int4"

    @property
    def groups(self) -> int:
        """Groups per head."""
        return -(-self.head_width // self.group_size)

    @property
    def packed_width(self) -> int:
        """Bytes of one head's codes: every group packs its values in pairs, a last short group too."""
        whole, rest = divmod(self.head_width, self.group_size)
        return whole * ((self.group_size + 1) // 2) + (rest + 1) // 2

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes of K (or V) of a token, without alignment; of its values, if unquantized."""
        if self.quantized:
            return self.heads * self.packed_width
        return self.heads * self.head_width * DTYPE_BYTES[self.dtype]

    @property
    def pairs_bytes(self) -> int:
        """Bytes of the scales and zeros of K (or V) of a token, without alignment."""
        return self.heads * self.groups * 2 * 2 if self.quantized else 0

    @property
    def pairs_offset(self) -> int:
        """Where the pairs of scale and zero start, after the codes."""
        return aligned(self.codes_bytes, SECTION_BYTES)

    @property
    def value_offset(self) -> int:
        """Where V starts in the record."""
        return self.pairs_offset + aligned(self.pairs_bytes, SECTION_BYTES)

    @property
    def record_bytes(self) -> int:
        """Bytes of one token's record."""
        return 2 * self.value_offset

    def places(self, which: int) -> tuple[slice, slice]:
        """Where in a record the codes of K (`which` 0) or V (1) are, and their pairs; these are none if unquantized."""
        codes = which * self.value_offset
        pairs = codes + self.pairs_offset
        return slice(codes, codes + self.codes_bytes), slice(pairs, pairs + self.pairs_bytes)
