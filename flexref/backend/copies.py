"""A move as the copies of bytes that it is; it knows no memory."""

from collections.abc import Sequence

from flexref.backend.protocol import Move


def copies_of(move: Move) -> Sequence[tuple[int, int, int]]:
    """(offset in the source's buffer, offset in the target's, bytes) of every copy; pieces that meet are one.

    `IndexError` where a span lies outside its buffer.
    """
    source, target = move.source, move.target
    for span in (source, target):
        if span.offset < 0 or span.end > span.buffer.nbytes:
            raise IndexError(f"bytes {span.offset} to {span.end} of a buffer of {span.buffer.nbytes}")
    if move.parts is not None:
        each: Sequence[tuple[int, int, int]] = move.parts.each
    elif source.stride == target.stride == source.nbytes:
        each = [(0, 0, source.count * source.nbytes)]
    else:
        each = [(n * source.stride, n * target.stride, source.nbytes) for n in range(source.count)]
    return [(source.offset + there, target.offset + here, nbytes) for there, here, nbytes in each]
