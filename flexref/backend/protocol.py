"""The whole surface of a port: memory, lanes, and a dozen operators; it knows no model, no file and no device.

Axis alphabet: B rows, T tokens of all rows of a group one after the other (no padding), E width, H heads, D head
width, I inputs, O outputs, V vocabulary, W width of an embedding table.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.parts import Parts
from flexref.backend.recording import RecordingBackend
from flexref.backend.records import RecordLayout


class Lane(str, Enum):
    """A lane that runs beside the operators, by what it moves; a port may use it as its name, a string."""

    DISK_IN = "disk_in"
    WEIGHTS_IN = "weights_in"  # to the device; the next two are for cache and activations, to the device and from it
    CACHE_IN = "cache_in"
    CACHE_OUT = "cache_out"
    DISK_OUT = "disk_out"
    LOADING = "loading"  # from disk, and on to the device: what comes once, beside what passes move
    HOST_COMPUTE = "host_compute"  # it moves nothing: attention over caches on the host runs there

    __str__ = str.__str__


LANES = tuple(Lane)
"""All lanes of a port."""


class Array(Protocol):
    """A typed view of memory that a port computes on. Slices of the leading and of the last axis are views too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    def __getitem__(self, key: Any, /) -> Any:
        """A view: `x[first:last]` or `x[:, first:last]`."""


class Buffer(Protocol):
    """A piece of memory of one tier that a port has allocated."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix (O, I) in groups along I: codes uint8 (O, packed) of `bits`, scale and zero (O, G) (`storage.quant`).

    Codes of 4 bits are packed two to a byte, each group by itself; codes of 8 bits are bytes, (O, I).
    """

    codes: Array
    scale: Array
    zero: Array
    width: int
    group_size: int
    bits: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I) of the matrix that it encodes."""
        return (self.codes.shape[0], self.width)


Matrix = Array | QuantizedMatrix

Prefix = tuple[Array, int]
"""Records of another array, and how many of its first tokens a row begins with: a multiple of CHUNK_TOKENS."""

CHUNK_TOKENS = 64
"""Keys that attention takes at once, counted from a row's first token: prefixes are shared in whole chunks, so that
what is added up, and in which order, does not depend on where records lie."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` pieces of `nbytes` bytes of a buffer: the first at `offset`, each next one `stride` bytes further on."""

    buffer: Buffer
    offset: int
    nbytes: int
    count: int = 1
    stride: int = 0

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + (self.count - 1) * self.stride + self.nbytes


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `source` to `target`, which has as many pieces of the same length; each is in device or host memory.

    With `parts`, these parts of both spans, each in one piece, and nothing else.
    """

    what: str
    source: Span
    target: Span
    parts: Parts | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return self.source.nbytes * self.source.count if self.parts is None else self.parts.nbytes


@dataclass(frozen=True, slots=True)
class HostWork:
    """A call that a lane makes on the host, in order with its moves: a disk read, for example.

    A port that only counts reads from it: `nbytes` of a `kind` of data over a `link`, and `gathered_bytes` of scattered
    rows that the host copies. `operators`: it calls `append` and `attend` of this port alone, on arrays of the
    host; a port that only counts makes the call too, and counts them on the lane.
    """

    what: str
    call: Callable[[], None]
    kind: str = ""
    link: str = ""
    nbytes: int = 0
    gathered_bytes: int = 0
    operators: bool = False


LaneStep = Move | HostWork


class Ticket(Protocol):
    """A promise of a lane: the steps of one submission, or of a mark: the operators called before it."""

    def wait(self) -> None:
        """Block the host until the steps are done; raises what they raised."""

    def done(self) -> bool:
        """Whether `wait` would return (or raise) at once."""

    def times(self) -> Sequence[tuple[float, float]]:
        """Once done, (start, end) of every step in seconds of `time.perf_counter`; of a mark, when it was reached."""


class Backend(RecordingBackend, Protocol):
    """One port. Add no public method that is not listed here.

    Operators run in the order of the calls. Results are new arrays in the workspace unless `out` names their place.
    """

    name: str
    caps: Capabilities

    def describe(self) -> Description:
        """The port's devices and the versions of its libraries; the same as long as neither is exchanged."""

    def keep_rows_apart(self, on: bool) -> None:
        """Operators from now on give every row its own bits, as `caps.row_invariant` promises, as from the beginning;
        or, if not `on`, may be faster. A port that does not promise it does nothing.
        """

    # Memory

    def free_bytes(self, tier: str) -> int:
        """Bytes that are free on `device` or `host` now; half of them each where both are one memory."""

    def allocate(self, tier: str, nbytes: int) -> Buffer:
        """`nbytes` of uninitialized, aligned memory on `device` or `host`. Budgets are the caller's task."""

    def release(self, buffer: Buffer) -> None:
        """Give a buffer back; nothing may still read or write it."""

    def view(self, buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        """The bytes of `buffer` from `offset` on as an array of a type in `units.DTYPE_BYTES`, row by row.

        `IndexError` where it would lie outside the buffer.
        """

    def host_memory(self, buffer: Buffer) -> npt.NDArray[np.uint8]:
        """A host buffer as writable bytes, for the disk and for checks."""

    def upload(self, values: npt.NDArray[Any], out: Array | None = None) -> Array:
        """Copy small host values (token ids, for example; not weights) to the device, in order with the operators.

        Without `out` the array takes from the workspace. The values may be changed as soon as this returns.
        """

    def download(self, x: Array) -> npt.NDArray[Any]:
        """A copy of a device array on the host; waits for the operators called so far."""

    def assign(self, target: Array, source: Array) -> None:
        """target = source, of equal shape and type, also between device and host, in order with the operators."""

    def workspace(self, buffer: Buffer | None) -> None:
        """Results of operators take memory from `buffer`; with None, as at first, fresh memory that nobody counts."""

    def frame(self) -> AbstractContextManager[None]:
        """A context: results that are made in it take workspace after those that exist; its end gives theirs back."""

    def workspace_peak_bytes(self) -> int:
        """The most bytes of the workspace that results held at once since it was set."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An uninitialized array in the workspace; `CapacityError` if the workspace is too small."""

    # Lanes

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """Run `steps` in order on `lane`, once `after` and the lane's earlier submissions are done.

        What a step raises is raised by its ticket, each time, and by all that waits for it; the submission's later
        steps, and submissions that come after its ticket, do not run; the lane goes on. Raises `RuntimeError` once the
        port is closed, since its ticket would never be done.
        """

    def mark(self) -> Ticket:
        """A ticket for all operators called so far."""

    def wait(self, ticket: Ticket) -> None:
        """Operators called from now on start when `ticket` is done."""

    def close(self) -> None:
        """Wait for what was submitted, and end the lanes. After that the port can only release memory.

        Closing again does nothing.
        """

    # Operators

    def gather(self, table: Array, ids: Array, first: int, out: Array) -> Array:
        """table (N, W), ids int32 (T,), out (T, W): out[t] = table[ids[t] - first] where that row exists.

        Rows of `out` whose id lies outside [first, first + N) stay as they are, so that a tiled table is gathered tile
        by tile. Types of table and out are equal, or out has the compute type.
        """

    def add_rows(self, x: Array, table: Array, ids: Array) -> Array:
        """x (T, E) += table (N, E) [ids (T,)], in place; every id must be a row of the table."""

    def linear(self, x: Array, w: Matrix, b: Array | None, *, out: Array | None = None, add: bool = False) -> Array:
        """x (T, I), w (O, I), b (O,) -> x @ w.T + b, (T, O); with `add` that is added to `out`."""

    def expand(self, w: Matrix, out: Array) -> Array:
        """The matrix (O, I) in the compute type, in `out`; `linear` with it gives the same bits as with `w`."""

    def layer_norm(self, x: Array, w: Array | None, b: Array | None, epsilon: float, out: Array | None = None) -> Array:
        """x (T, E) -> (x - mean) / sqrt(var + epsilon) * w + b along E, (T, E); `out` may be `x`."""

    def activate(self, x: Array, activation: str) -> Array:
        """x (T, F) -> activation(x) in place; the names are those of `spec.ACTIVATIONS`."""

    def cache_rows(
        self, records: Sequence[Array], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> Any:
        """Handle of the caches of B rows: per row its records, uint8 (capacity * layout.record_bytes,).

        `prefixes`, for ports that say `shares_prefixes`: per row None, or where the records of its first tokens lie;
        its own array then holds those of the tokens after them. Several rows may name one array, also that of a row
        without a prefix of its own, which may fill it in the same call of `append`. Bits are those of own copies.
        """

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Any:
        """Handle of the lengths of B rows in one pass: `past` tokens in each cache, `new` ones of each among the T.

        A prefix counts: `past` is at least the tokens of a row's prefix.
        """

    def append(self, rows: Any, segments: Any, k: Array, v: Array) -> None:
        """k, v (T, E): write the records of every row's new tokens after its past ones (quantized, if so laid out).

        Into the row's own array, never into a prefix.
        """

    def attend(self, rows: Any, segments: Any, q: Array, scale: float, out: Array) -> Array:
        """q (T, E) over the caches, causal: softmax(q k^T * scale) v per row and head, out (T, E).

        A row's new token number s attends to its past tokens and to its new tokens up to s, as the records hold them.
        """

    def sample(
        self, logits: Array, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """logits (B, V), uniforms (B,) -> token ids (B,) on the host; temperature 0 is the argmax, lowest id first.

        Otherwise: divide by temperature, keep the `top_k` largest (0: all), softmax, keep the smallest set of most
        probable tokens that reaches `top_p`, and invert its cumulative distribution at the row's uniform.
        Raises `FlexrefError` if a row's logits are not finite.
        """
