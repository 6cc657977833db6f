"""The command with which a paused job goes on, made from the one that it was begun with; it knows no job."""

import shlex
from collections.abc import Iterator, Sequence

BEGINS_ANEW = "--force"
"""Given again it would throw away what is done."""

WRITES_BOUND = "--max-disk-writes-gib"
"""Given again as it was, once it is reached, it would pause the job at once."""


def resume_command(program: str, arguments: Sequence[str], why: str) -> str:
    """`program` with its `arguments`, for a shell, without those that a job which paused for `why` must not have."""
    return shlex.join([program, *_kept(arguments, bound_reached=WRITES_BOUND in why)])


def _kept(arguments: Sequence[str], *, bound_reached: bool) -> Iterator[str]:
    rest = iter(arguments)
    for argument in rest:
        if argument == BEGINS_ANEW:
            continue
        if bound_reached and argument == WRITES_BOUND:
            next(rest, None)  # its value
        elif not (bound_reached and argument.startswith(f"{WRITES_BOUND}=")):
            yield argument
