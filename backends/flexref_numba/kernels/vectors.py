"""Vectors of sixteen float32, in the words of LLVM; it knows no operator.

numba leaves to LLVM how a loop becomes vectors, and with `fastmath` in which order a sum is added up. Here the order is
written out instead: a vector has sixteen lanes on every processor (which has it in one register, in two or in four),
and what its lanes hold is added up in one fixed tree. So nothing needs `fastmath`, and a result depends on its own
operands only, not on how many are computed at once. Addresses are int64, as numba's functions have them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16

FLOAT, HALF, BYTE, WORD, ADDRESS = ir.FloatType(), ir.HalfType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR, WORDS, HALVES, BYTES = (ir.VectorType(kind, LANES) for kind in (FLOAT, WORD, HALF, BYTE))

PREFETCH = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), WORD, WORD, WORD])

Value = Any
"""A value of LLVM's."""


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The kind of processor that numba compiles for and what it can, in LLVM's words: NUMBA_ENABLE_AVX=0 and the like
    let it have less than the one that is here."""
    from numba.core.registry import cpu_target  # noqa: PLC0415  it starts LLVM

    kind, _, features = cpu_target.target_context.codegen().magic_tuple()
    return kind, frozenset(features.split(","))


def wide_registers() -> bool:
    """Whether the processor has registers of sixteen float32, thirty-two of them (AVX-512)."""
    return "+avx512f" in processor()[1]


def reads_halves() -> bool:
    """Whether the processor has instructions for float16; without them LLVM would end the process."""
    kind, features = processor()
    return not kind.startswith("x86") or "+f16c" in features


class Builder:
    """Appends instructions to a function of numba's that is being compiled."""

    def __init__(self, builder: Any) -> None:
        self.llvm = builder

    # Numbers

    def number(self, value: int) -> Value:
        """An int64."""
        return ADDRESS(value)

    def add(self, *terms: Value | int) -> Value:
        """The sum of int64."""
        total, *rest = (ADDRESS(term) if isinstance(term, int) else term for term in terms)
        for term in rest:
            total = self.llvm.add(total, term)
        return total

    def times(self, value: Value, factor: Value | int) -> Value:
        """A product of int64."""
        return self.llvm.mul(value, ADDRESS(factor) if isinstance(factor, int) else factor)

    def over(self, value: Value, divisor: int) -> Value:
        """value // divisor, of an int64 that is not negative."""
        return self.llvm.udiv(value, ADDRESS(divisor))

    @contextmanager
    def loop(self, first: Value, last: Value) -> Iterator[Value]:
        """Repeat what is appended inside for every int64 from `first` to before `last`, which it yields."""
        with cgutils.for_range_slice(self.llvm, first, last, ADDRESS(1), ADDRESS) as (index, _):
            yield index

    # Memory

    def read(self, address: Value, kind: Any, align: int) -> Value:
        """What lies at an address, as a `kind`."""
        return self.llvm.load(self.llvm.inttoptr(address, kind.as_pointer()), align=align)

    def write(self, address: Value, value: Value, align: int) -> None:
        """Let `value` lie at an address."""
        self.llvm.store(value, self.llvm.inttoptr(address, value.type.as_pointer()), align=align)

    def fetch_ahead(self, address: Value) -> None:
        """Let the processor begin to read what lies at an address, if there is memory; nothing is known of it yet."""
        pointer = self.llvm.inttoptr(address, BYTE.as_pointer())
        function = self.llvm.module.declare_intrinsic("llvm.prefetch", [pointer.type], PREFETCH)
        self.llvm.call(function, [pointer, WORD(0), WORD(3), WORD(1)])

    def variable(self, kind: Any, value: Value) -> Any:
        """Where a value is kept that changes: `get` and `set` it. LLVM keeps it in a register."""
        place = cgutils.alloca_once(self.llvm, kind)
        self.llvm.store(value, place)
        return place

    def get(self, place: Any) -> Value:
        """What a variable holds."""
        return self.llvm.load(place)

    def set(self, place: Any, value: Value) -> None:
        """Let a variable hold `value`."""
        self.llvm.store(value, place)

    # Vectors

    def zeros(self) -> Value:
        """A vector of zeros."""
        return ir.Constant(VECTOR, [0.0] * LANES)

    def splat(self, value: Value, lanes: int = LANES) -> Value:
        """A vector whose lanes all hold `value`."""
        kind = ir.VectorType(value.type, lanes)
        first = self.llvm.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
        return self.shuffle(first, first, [0] * lanes)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Those lanes of `a` and of `b`, which follow those of `a`."""
        return self.llvm.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, len(lanes)), list(lanes)))

    def call(self, name: str, *operands: Value) -> Value:
        """One of LLVM's own functions, of operands of one type, that of its value."""
        kind = operands[0].type
        suffix = "f32" if kind == FLOAT else f"v{kind.count}f32"
        signature = ir.FunctionType(kind, [kind] * len(operands))
        function = cgutils.get_or_insert_function(self.llvm.module, signature, f"llvm.{name}.{suffix}")
        return self.llvm.call(function, operands)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.call("fma", a, b, c)

    def greater(self, a: Value, b: Value) -> Value:
        """The greater of each two numbers: `a` where it is greater, else `b`."""
        return self.llvm.select(self.llvm.fcmp_ordered(">", a, b), a, b)

    def lesser(self, a: Value, b: Value) -> Value:
        """The lesser of each two numbers: `a` where it is less, else `b`."""
        return self.llvm.select(self.llvm.fcmp_ordered("<", a, b), a, b)

    def read_floats(self, address: Value) -> Value:
        """Sixteen float32."""
        return self.read(address, VECTOR, 4)

    def read_halves(self, address: Value) -> Value:
        """Sixteen float16, as float32."""
        return self.llvm.fpext(self.read(address, HALVES, 2), VECTOR)

    def read_bytes(self, address: Value) -> Value:
        """Sixteen bytes, as int32."""
        return self.llvm.zext(self.read(address, BYTES, 1), WORDS)

    def looked_up(self, table: Value, indices: Value) -> Value:
        """table[index % 16] for sixteen int32, where the processor has registers of sixteen float32."""
        function = cgutils.get_or_insert_function(
            self.llvm.module, ir.FunctionType(VECTOR, [VECTOR, WORDS]), "llvm.x86.avx512.permvar.sf.512"
        )
        return self.llvm.call(function, [table, indices])

    def sums(self, vectors: Sequence[Value]) -> list[Value]:
        """The sum of the lanes of each vector: lane l and l + 8, then l and l + 4, l + 2, l + 1."""
        return self.folded(vectors, self.llvm.fadd)

    def folded(self, vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> list[Value]:
        """`sums`, with another operation. The trees of several vectors share instructions, so far as lanes are free."""
        width, held = LANES, [(vector, [number]) for number, vector in enumerate(vectors)]
        while width > 1:  # each vector holds parts of as many sought values as there are pieces of `width` lanes
            half, folded = width // 2, []
            for place in range(0, len(held), 2):
                (a, of_a), (b, of_b) = held[place], held[min(place + 1, len(held) - 1)]
                starts = range(0, 2 * LANES, width)
                low = [start + lane for start in starts for lane in range(half)]
                high = [start + half + lane for start in starts for lane in range(half)]
                folded.append((combine(self.shuffle(a, b, low), self.shuffle(a, b, high)), of_a + of_b))
            width, held = half, folded
        found = {
            number: self.llvm.extract_element(vector, WORD(lane))
            for vector, members in held
            for lane, number in enumerate(members)
        }
        return [found[number] for number in range(len(vectors))]
