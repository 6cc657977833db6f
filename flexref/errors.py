"""The errors a user can cause: each says in one line what was found and what was needed; it knows no other module."""

import errno
import os
from collections.abc import Mapping

BINARY_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
"""Of bytes, the largest first."""

GIB_STEPS = 10_000
"""Hints are rounded up to this fraction of a GiB."""


class FlexrefError(Exception):
    """The base of every error that a user can cause; its text is one line, fit to be shown as it is."""


class CheckpointError(FlexrefError):
    """A Hugging Face folder that is not an OPT checkpoint, or is incomplete, damaged or hostile."""


class WeightFileError(FlexrefError):
    """A flexref weight file that is damaged, foreign, or of an unknown format version."""


class QuantizationError(FlexrefError):
    """Values that group-wise quantization cannot represent: not finite, or out of the scale type's range."""


class PolicyError(FlexrefError):
    """A policy that contradicts itself, the model or the machine's capabilities."""


class PromptError(FlexrefError):
    """A prompt or a sampling setting that the model cannot serve."""


class LogitsFileError(FlexrefError):
    """A file of logits that is damaged or foreign, or does not fit the reference that it is compared with."""


class BaselineError(FlexrefError):
    """An earlier benchmark is not one, or is of another job or machine."""


class StorageError(FlexrefError):
    """A file system that refuses: full, unwritable, missing, or failing while it is read."""


class SpillDamaged(StorageError):
    """Cache or hidden states that a job had spilled do not come back as they were written: its rows begin again."""


class LaneFailed(FlexrefError):
    """A lane was ended by what nobody foresaw: a library's own error, a bug, `SystemExit` in its thread, say."""


class UnknownName(StorageError):
    """A name that is neither a file nor one of those that are known."""


class UnknownTensor(FlexrefError, KeyError):
    """The name of a tensor that a model does not have."""

    __str__ = Exception.__str__  # a KeyError would show its text in quotes


class WrongCall(FlexrefError):
    """An argument of a command that no model and no machine can serve."""


class BatchError(FlexrefError):
    """A batch job that cannot begin or go on: its input, output, journal or settings do not fit each other."""


class JobPaused(FlexrefError):
    """A batch job stops in order before its end, and goes on when the same command is given again; says why."""


class EngineError(FlexrefError):
    """An engine that takes no job now: it is at work on another, was closed, or was broken off by force."""


class UnknownBackend(FlexrefError):
    """A backend name that no installed package registers."""


class BackendUnavailable(FlexrefError):
    """A backend that is installed but whose device, driver or library is not here."""


def install_hint(extra: str) -> str:
    """How the packages of an extra are had; flexref is on no index, so that its name alone would find nothing."""
    return f"pip install '.[{extra}]' in the checkout of flexref"


def described(error: BaseException) -> str:
    """An error in one line: its type, and what it says if it says anything; what is no UTF-8 is escaped."""
    said = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__} without a message"


def is_refused_resource(error: BaseException) -> bool:
    """Whether the system, not flexref, is at fault: no thread, or no room for a library, is to be had."""
    said = str(error)
    no_thread = "can't start new thread", os.strerror(errno.EAGAIN)  # as Python says it, and as libraries in C++ do
    return (isinstance(error, RuntimeError) and any(words in said for words in no_thread)) or (
        isinstance(error, ImportError) and ("failed to map" in said or "cannot allocate memory" in said)
    )


def how_many(count: int, what: str) -> str:
    """A number with what it counts, in words: `1 row`, `2 rows`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def in_gib(size_bytes: int) -> str:
    """`size_bytes` in the largest binary unit that keeps it at 1 or more, for people: `1.50 GiB`, `12 bytes`."""
    for unit, unit_bytes in BINARY_UNITS:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.2f} {unit}"
    return how_many(size_bytes, "byte")


def gib_to_give(size_bytes: int) -> str:
    """GiB for an option, rounded up to `GIB_STEPS`, so that following a hint to the letter is enough: `0.0042`."""
    return f"{-(-size_bytes * GIB_STEPS // BINARY_UNITS[0][1]) / GIB_STEPS:.4f}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that say something, for people: `12 s`, `3 min 20 s`, `1 h 4 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class CapacityError(FlexrefError):
    """A request that a tier's budget cannot hold; names the tier, the request, what is free and who holds the rest."""

    def __init__(
        self, tier: str, what: str, needed_bytes: int, free_bytes: int, holders: Mapping[str, int], hint: str = ""
    ) -> None:
        self.tier, self.what = tier, what
        self.needed_bytes, self.free_bytes, self.holders, self.hint = needed_bytes, free_bytes, dict(holders), hint
        largest = sorted(self.holders.items(), key=lambda holder: -holder[1])[:6]
        held = ", ".join(f"{name} {in_gib(size)}" for name, size in largest) or "nothing"
        message = (
            f"{tier} memory is too small by {in_gib(max(0, needed_bytes - free_bytes))}: {what} needs "
            f"{in_gib(needed_bytes)}, {in_gib(free_bytes)} is free; held by: {held}"
        )
        super().__init__(f"{message}; {hint}" if hint else message)
