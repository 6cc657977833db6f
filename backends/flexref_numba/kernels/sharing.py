"""One operator's units among several threads, as functions of numba's; they know no operator, only its address.

Threads that wait in Python, one after the other, for Python's lock begin an operator milliseconds apart on a machine of
many processors. Here they wait for a semaphore of the system's, and none needs the lock to begin or to end.

All that is shared lies on a board of int64, written by whoever shares, while nobody helps.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.numbers import argument_kinds, inner, name_apart, peek
from flexref_numba.kernels.vectors import ADDRESS, BYTE, FLOAT, WORD, Builder

LINE = 8
"""int64 of a cache line: what one thread writes and another reads often lies on lines of their own."""

FUNCTION, OPERANDS, UNITS, AT_ONCE, SCRATCH, SCRATCH_BYTES, CLOSED = range(7)
"""Words of the board: addresses of the function and of its operands; how many units there are, how many are taken at
once; where the first thread's scratch lies, and how many bytes each thread has; whether helpers are to end."""

WAIT, TRY, POST = range(LINE, LINE + 3)
"""Words of the board: addresses of the system's `sem_wait`, `sem_trywait` and `sem_post`."""

NEXT, LEFT, TOTAL, BEGIN, DONE, PLACES = (LINE * line for line in range(2, 8))
"""Words of the board: the next unit that nobody has, how many threads have not ended, the sum of what calls gave; two
semaphores: of helpers that may begin, and of a helper that ends last; the next part of the scratch that nobody has."""

BOARD_WORDS = LINE * 8

SEMAPHORE_BYTES = 8 * LINE
"""What a semaphore has here; the system's are shorter."""

HELD_APART = ("first", "last", "scratch")
"""Arguments of a function that each call is given anew."""


def make_shared(make: Callable[..., Callable[..., Any]], *variant: Any) -> Callable[..., Any]:
    """What `make` makes of `variant`, for units `first` to before `last`, with its other arguments from memory.

    `operands`: 8 bytes for each argument that is not held apart, in their order; a float32 in the lower four.
    """
    function = make(*variant)
    name_apart(function)
    names, kinds = argument_names(function), argument_kinds(function)
    gives = types.int64 if function.__annotations__.get("return") is int else types.void

    @intrinsic
    def part(_: Any, operands: Any, first: Any, last: Any, scratch: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b, apart, values, place = Builder(builder), dict(zip(HELD_APART, args[1:], strict=True)), [], args[0]
            for name, kind in zip(names, kinds, strict=True):
                if name in apart:
                    values.append(apart[name])
                else:
                    values.append(b.read(place, FLOAT if kind == types.float32 else ADDRESS, 8))
                    place = b.add(place, 8)
            found = context.compile_internal(builder, function, gives(*kinds), values)
            return found if gives == types.int64 else ADDRESS(0)

        return types.int64(*[types.int64] * 4), build

    def shared(operands, first, last, scratch) -> int:
        found: int = part(operands, first, last, scratch)
        return found

    return shared


def argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's arguments, in their order."""
    code = function.__code__
    return code.co_varnames[: code.co_argcount]


@intrinsic
def take_and_add(_: Any, address: Any, value: Any) -> Any:
    """What lies at an address, to which `value` is added, as one step for all threads."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], ADDRESS.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def of_semaphore(_: Any, function: Any, semaphore: Any) -> Any:
    """What one of the system's functions gives for a semaphore: 0 if it did what it says."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(WORD, [BYTE.as_pointer()])
        operand = builder.inttoptr(args[1], BYTE.as_pointer())
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), [operand]), ADDRESS)

    return types.int64(types.int64, types.int64), build


@intrinsic
def of_units(_: Any, function: Any, operands: Any, first: Any, last: Any, scratch: Any) -> Any:
    """What the function at an address gives, which `make_shared` has made."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ADDRESS, [ADDRESS] * 4)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(*[types.int64] * 5), build


def _take() -> Any:
    """A function of numba's: call the board's function for units that nobody has, until there is none."""
    integer = peek("int64")

    @inner
    def take(board, place):
        function, operands = integer(board + 8 * FUNCTION), integer(board + 8 * OPERANDS)
        units, at_once = integer(board + 8 * UNITS), integer(board + 8 * AT_ONCE)
        scratch, total = integer(board + 8 * SCRATCH) + place * integer(board + 8 * SCRATCH_BYTES), 0
        first = take_and_add(board + 8 * NEXT, at_once)
        while first < units:
            total += of_units(function, operands, first, min(first + at_once, units), scratch)
            first = take_and_add(board + 8 * NEXT, at_once)
        take_and_add(board + 8 * TOTAL, total)

    return take


def make_help() -> Callable[..., Any]:
    """Help whoever shares on a board, until it is closed.

    Which helpers begin is the system's choice, so each takes the next part of the scratch: there are as many as begin.
    One that ends lets the next one end, so that whoever closes need not know how many there are.
    """
    integer, take = peek("int64"), _take()

    def help_on(board) -> None:
        wait, post = integer(board + 8 * WAIT), integer(board + 8 * POST)
        while True:
            while of_semaphore(wait, board + 8 * BEGIN) != 0:
                pass  # a signal came
            if integer(board + 8 * CLOSED) != 0:
                of_semaphore(post, board + 8 * BEGIN)
                break
            take(board, take_and_add(board + 8 * PLACES, 1))
            if take_and_add(board + 8 * LEFT, -1) == 1:
                of_semaphore(post, board + 8 * DONE)

    return help_on


def make_share() -> Callable[..., Any]:
    """Share what stands on a board with `helpers`, and wait until all of it is done.

    A helper that has not begun when no unit is left is not waited for: its leave to begin is taken back.
    """
    integer, take = peek("int64"), _take()

    def share(board, helpers) -> None:
        wait, post, taken_back = integer(board + 8 * WAIT), integer(board + 8 * POST), integer(board + 8 * TRY)
        for _ in range(helpers):
            of_semaphore(post, board + 8 * BEGIN)
        take(board, 0)
        ended = 1
        while ended <= helpers and of_semaphore(taken_back, board + 8 * BEGIN) == 0:
            ended += 1
        if take_and_add(board + 8 * LEFT, -ended) != ended:
            while of_semaphore(wait, board + 8 * DONE) != 0:
                pass  # a signal came

    return share
