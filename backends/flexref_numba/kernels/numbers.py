"""Single numbers and rows of them at addresses, as functions of numba's; it knows no operator."""

import uuid
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.tiles import Form, scalar
from flexref_numba.kernels.vectors import ADDRESS, BYTE, FLOAT, HALF, HALVES, LANES, VECTOR, WORDS, Builder

STORED_TYPES = {"float32": (FLOAT, 4), "float16": (HALF, 2), "int64": (ADDRESS, 8), "int32": (ir.IntType(32), 4)}


def inner(function: Callable[..., Any]) -> Any:
    """`function`, for others of numba's to call: of int64, but for arguments that it annotates as float.

    Unlike one with `numba.njit` it is compiled with its callers alone, and not for itself too.
    """
    name_apart(function)
    kinds = argument_kinds(function)
    gives = types.int64 if function.__annotations__.get("return") is int else types.void

    @intrinsic
    def call(_: Any, *given: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [builder.extract_value(args[0], place) for place in range(len(kinds))]
            return context.compile_internal(builder, function, gives(*kinds), values)

        return gives(types.StarArgTuple(kinds)), build

    return call


def name_apart(function: Callable[..., Any]) -> None:
    """Give `function` a name that no other one has, in any process.

    Variants have one name, and numba tells them apart by a number that counts anew in each process: of two that were
    kept by two processes LLVM would take the first one loaded for both.
    """
    function.__qualname__ = f"{function.__qualname__}_{uuid.uuid4().hex}"


def argument_kinds(function: Callable[..., Any]) -> tuple[Any, ...]:
    """float32 for arguments that are annotated as float, int64 for all others."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return tuple(types.float32 if function.__annotations__.get(name) is float else types.int64 for name in names)


def whole(value: int) -> Any:
    """A vector of one int32."""
    return ir.Constant(WORDS, [value] * LANES)


def peek(kind: str) -> Any:
    """A function of numba's: the number of a `kind` at an address, as float32 or int64."""
    gives = types.int64 if kind.startswith("int") else types.float32

    @intrinsic
    def read(_: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b = Builder(builder)
            if kind.startswith("int"):
                stored, align = STORED_TYPES[kind]
                return builder.sext(b.read(args[0], stored, align), ADDRESS)
            return scalar(b, args[0], kind)

        return gives(types.int64), build

    return read


def poke(kind: str) -> Any:
    """A function of numba's: let a float32 lie at an address, as a number of a `kind`, rounded to the nearest."""

    @intrinsic
    def write(_: Any, address: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            stored, align = STORED_TYPES[kind]
            value = builder.fptrunc(args[1], stored) if kind == "float16" else args[1]
            Builder(builder).write(args[0], value, align)
            return context.get_dummy_value()

        return types.void(types.int64, types.float32), build

    return write


@intrinsic
def peek_byte(_: Any, address: Any) -> Any:
    """The byte at an address, as int64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(Builder(builder).read(args[0], BYTE, 1), ADDRESS)

    return types.int64(types.int64), build


@intrinsic
def poke_byte(_: Any, address: Any, value: Any) -> Any:
    """Let the lowest eight bits of an int64 lie at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Builder(builder).write(args[0], builder.trunc(args[1], BYTE), 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Builder(builder).fma(*args)

    return types.float32(types.float32, types.float32, types.float32), build


def _expand_sixteen(kind: str) -> Any:
    """A function of numba's: (codes, scale, zero, low, high): what sixteen bytes of codes stand for, as float32.

    Values of 4-bit codes in the low halves lie at `low` then, those in the high ones at `high`; of 8 bits at `low`.
    """

    @intrinsic
    def expanded(_: Any, codes: Any, scale: Any, zero: Any, low: Any, high: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b, (codes, scale, zero, low, high) = Builder(builder), args
            step, least, found = b.splat(scale), b.splat(zero), b.read_bytes(codes)
            parts = [(low, found)]
            if kind == "codes4":
                parts = [(low, builder.and_(found, whole(15))), (high, builder.lshr(found, whole(4)))]
            for target, part in parts:
                b.write(target, b.fma(builder.sitofp(part, VECTOR), step, least), 4)
            return context.get_dummy_value()

        kinds = types.int64, types.float32, types.float32, types.int64, types.int64
        return types.void(*kinds), build

    return expanded


def moved(given: str, kept: str) -> Any:
    """A function of numba's: (values, count, out): numbers of one type as those of another, rounded to the nearest."""

    @intrinsic
    def move(_: Any, values: Any, count: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _append_moves(Builder(builder), given, kept, args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), build

    return move


def _append_moves(b: Builder, given: str, kept: str, args: Any) -> None:
    values, count, out = args
    given_bytes, kept_bytes = (2 if kind == "float16" else 4 for kind in (given, kept))
    read = b.read_halves if given == "float16" else b.read_floats

    def some(place: Any, lanes: int) -> None:
        at = b.add(values, b.times(place, given_bytes))
        found = read(at) if lanes > 1 else scalar(b, at, given)
        if kept == "float16":
            found = b.llvm.fptrunc(found, HALVES if lanes > 1 else HALF)
        b.write(b.add(out, b.times(place, kept_bytes)), found, kept_bytes)

    whole = b.over(count, LANES)
    with b.loop(ADDRESS(0), whole) as step:
        some(b.times(step, LANES), LANES)
    with b.llvm.if_else(b.llvm.icmp_signed("<", count, ADDRESS(LANES))) as (few, many):
        with few, b.loop(ADDRESS(0), count) as place:
            some(place, 1)
        with many, b.llvm.if_then(b.llvm.icmp_signed("<", b.times(whole, LANES), count)):
            some(b.add(count, -LANES), LANES)  # of these the first ones once more


def expand_row(form: Form) -> Any:
    """A function of numba's: (values, scale, zero, pair_step, inputs, group, out): a row as float32 in `out`.

    Groups may have any length, and the last one of a row may be short. Where the form names no type of scale and zero,
    `pair_step` does: what lies two bytes apart is float16.
    """
    if not form.coded:
        numbers = moved(form.kind, "float32")

        @inner
        def widened(values, scale, zero, pair_step, inputs, group, out):
            numbers(values, inputs, out)

        return widened
    halves, floats, write, sixteen = peek("float16"), peek("float32"), poke("float32"), _expand_sixteen(form.kind)
    four, named = form.kind == "codes4", bool(form.pair)

    @inner
    def expanded(values, scale, zero, pair_step, inputs, group, out):
        first = 0
        while first < inputs:
            size = min(group, inputs - first)
            if named or pair_step == 2:
                step, least = halves(scale), halves(zero)
            else:
                step, least = floats(scale), floats(zero)
            nbytes = (size + 1) // 2 if four else size
            high, done = out + 4 * nbytes, 0
            while done + LANES <= (size - nbytes if four else size):
                sixteen(values + done, step, least, out + 4 * done, high + 4 * done)
                done += LANES
            while done < nbytes:
                byte = peek_byte(values + done)
                write(out + 4 * done, fused(types.float32(byte & 15 if four else byte), step, least))
                if four and nbytes + done < size:
                    write(high + 4 * done, fused(types.float32(byte >> 4), step, least))
                done += 1
            values += nbytes
            scale += pair_step
            zero += pair_step
            out += 4 * size
            first += size

    return expanded


@intrinsic
def rint(_: Any, value: Any) -> Any:
    """A float32 rounded to the nearest integer, ties to the even one."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Builder(builder).call("rint", args[0])

    return types.float32(types.float32), build
