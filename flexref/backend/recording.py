"""Operators that a port records once and replays: the part of its surface that is about them; it knows no operator."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class RecordingBackend(Protocol):
    """What `Backend` has for recordings. Ports without `caps.replays` derive from `DirectCalls`.

    What changes from one replay to the next lies in arrays, and in what handles of rows and lengths stand for.
    """

    def record(self, operators: Callable[[], None]) -> Any:
        """Handle of what `operators` calls, in order, on arrays and handles that are there already; it does not run.

        For ports with `caps.replays`. Every result has a place: in the workspace, or `out`. `sample`, and all that
        moves memory but `assign` between arrays of the device, are for the caller, before or after. It may be called
        more than once. `nbytes` of the handle bounds what it holds on the device from its first `replay` to `forget`.
        `CapacityError` if there is no room for what it keeps; then it can be called directly still.
        """

    def replay(self, recording: Any) -> None:
        """Call what was recorded, in order with the operators: the same bits as from direct calls now.

        Arrays have what they hold now, handles of rows and lengths what they stand for now (`renew_rows`,
        `renew_segments`). `CapacityError` if the device has no memory for it; then it can be called directly still.
        """

    def forget(self, recording: Any) -> None:
        """Give a recording back, once; what was replayed comes to its end."""

    def sample_ahead(
        self,
        logits: Any,
        temperature: float,
        top_k: int,
        top_p: float,
        uniforms: npt.NDArray[np.float64],
        out: Any,
    ) -> Callable[[], npt.NDArray[np.int64]]:
        """As `sample`, logits (B, V), but called as an operator is: later ones find the ids in `out`, int32 (B,).

        What it returns waits for them and gives them to the host, and raises what `sample` raises. Before that the
        caller may call operators, and replay, and write to the logits, but not to `out`.
        """

    def renew_rows(
        self, rows: Sequence[Any], records: Sequence[Any], prefixes: Sequence[tuple[Any, int] | None] | None = None
    ) -> bool:
        """Let handles of as many rows each, which lie alike, stand for other rows: also where they were recorded.

        The first handle's are those of `records`, as many as before, and `prefixes`; the other handles' lie as far from
        them as theirs did from the first one's until now. False if the port cannot: then nothing has changed, and new
        handles and recordings are needed. Operators that were called before it are not concerned.
        """

    def renew_segments(self, segments: Any, past: Sequence[int], new: Sequence[int]) -> bool:
        """Let a handle of lengths stand for others, also where it was recorded; False as in `renew_rows`."""


class DirectCalls:
    """The part of `Backend` that is about recordings, for a port without `caps.replays`."""

    def record(self, operators: Callable[[], None]) -> Any:
        """See `RecordingBackend.record`: nobody asks for it."""
        raise RuntimeError(f"{type(self).__name__} records nothing (caps.replays)")

    def replay(self, recording: Any) -> None:
        """See `RecordingBackend.replay`: there is none."""
        raise RuntimeError(f"{type(self).__name__} records nothing (caps.replays)")

    def forget(self, recording: Any) -> None:
        """See `RecordingBackend.forget`: there is none."""
        raise RuntimeError(f"{type(self).__name__} records nothing (caps.replays)")

    def sample_ahead(
        self,
        logits: Any,
        temperature: float,
        top_k: int,
        top_p: float,
        uniforms: npt.NDArray[np.float64],
        out: Any,
    ) -> Callable[[], npt.NDArray[np.int64]]:
        """See `RecordingBackend.sample_ahead`: nobody asks for it."""
        raise RuntimeError(f"{type(self).__name__} records nothing (caps.replays)")

    def renew_rows(
        self, rows: Sequence[Any], records: Sequence[Any], prefixes: Sequence[tuple[Any, int] | None] | None = None
    ) -> bool:
        """See `RecordingBackend.renew_rows`: new handles cost nothing here."""
        return False

    def renew_segments(self, segments: Any, past: Sequence[int], new: Sequence[int]) -> bool:
        """See `RecordingBackend.renew_segments`: new handles cost nothing here."""
        return False
