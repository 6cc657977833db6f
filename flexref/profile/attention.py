"""Times `append` and `attend` of a port over caches of random tokens, on the device and on the host; no layer."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flexref.backend.protocol import Buffer
from flexref.backend.records import RecordLayout
from flexref.machine.curves import Curve
from flexref.machine.machine import attention_key
from flexref.profile.meter import Call, Meter, Point, backend_dtype
from flexref.profile.operands import GROUP_SIZE, Memory, spread

SCHEMES = ("none", "int4")
"""How a cache may hold its records."""

FIRST_TOKENS = 32
"""Random records are appended once and then copied: as good to read, and much sooner there."""

NARROWER = 4
"""A port that computes on the host runs narrower models, and each row costs it more than its bytes do."""

HANDLES_MOST = 64
"""Bounds how many caches are read in turn."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A pool of valid records on a place, to be cut into rows anywhere, and (T, 3E) queries, keys and values there."""

    meter: Meter
    place: str
    layout: RecordLayout
    pool: Buffer
    tokens: int
    qkv: Any
    out: Any

    @property
    def width(self) -> int:
        """Of queries, keys and values."""
        return self.layout.heads * self.layout.head_width

    def handles(self, rows: int, tokens: int) -> list[Any]:
        """Caches of `rows` rows of `tokens` tokens each, as many as the pool has, at different places of it."""
        backend, size = self.meter.backend, tokens * self.layout.record_bytes
        found = []
        for first in range(0, min(HANDLES_MOST, self.tokens // (rows * tokens)) * rows, rows):
            records = [backend.view(self.pool, (first + row) * size, (size,), "uint8") for row in range(rows)]
            found.append(backend.cache_rows(records, self.layout))
        return found

    def attends(self, rows: int, past: int, new: int) -> list[Call]:
        """Attention of `rows` rows with `past` and `new` tokens each."""
        backend, width = self.meter.backend, self.width
        segments = backend.segments([past] * rows, [new] * rows)
        q, out = self.qkv[: rows * new, :width], self.out[: rows * new]
        scale = self.layout.head_width**-0.5
        return [partial(backend.attend, handle, segments, q, scale, out) for handle in self.handles(rows, past + new)]

    def appends(self, rows: int, new: int) -> list[Call]:
        """Records of `new` tokens for each of `rows` rows."""
        backend, width = self.meter.backend, self.width
        segments = backend.segments([0] * rows, [new] * rows)
        k, v = self.qkv[: rows * new, width : 2 * width], self.qkv[: rows * new, 2 * width :]
        return [partial(backend.append, handle, segments, k, v) for handle in self.handles(rows, new)]


@dataclass(frozen=True, slots=True)
class Attention:
    """Curves by `attention_key`, and those of appends by operator."""

    decode: dict[str, Curve]
    prefill: dict[str, Curve]
    appends: dict[str, Curve]


def attention_curves(meter: Meter) -> Attention:
    """All of them: on the device, and on the host where the port attends there."""
    found = Attention({}, {}, {})
    places = {"device": meter.sizes.head_widths}
    if meter.backend.caps.attends_on_host:
        places["host"] = meter.sizes.host_head_widths
    for place, head_widths in places.items():
        for scheme in SCHEMES:
            for head_width in head_widths:
                _measure(meter, (place, scheme, head_width), found, appends=head_width == head_widths[-1])
    return found


def _measure(meter: Meter, where: tuple[str, str, int], found: Attention, appends: bool) -> None:
    place, scheme, head_width = where
    key = attention_key(*where)
    meter.tell(f"attention on {place} over a cache of scheme {scheme}, heads of width {head_width}")
    width = meter.sizes.attention_width // (1 if meter.asynchronous else NARROWER)
    layout = RecordLayout(max(1, width // head_width), head_width, backend_dtype(meter.backend), scheme, GROUP_SIZE)
    with meter.memory() as memory:
        cache = _filled(meter, memory, place, layout)
        found.decode[key] = meter.curve(f"decode attention, {key}", _decodes(cache))
        found.prefill[key] = meter.curve(f"prefill attention, {key}", _prefills(cache))
        if appends:
            name = f"append {scheme}" + (" host" if place == "host" else "")
            found.appends[name] = meter.curve(name, _appends(cache))


def _filled(meter: Meter, memory: Memory, place: str, layout: RecordLayout) -> Cache:
    """A pool as large as the longest point, or as what is to exceed a cache; half of the room at most."""
    sizes, backend = meter.sizes, meter.backend
    width, record = layout.heads * layout.head_width, layout.record_bytes
    shapes = (*sizes.decode, *sizes.prefill, *sizes.appends)
    wanted = max(*(rows * tokens for rows, tokens in shapes), sizes.rotated_bytes // record)
    tokens = max(FIRST_TOKENS, min(wanted, memory.room_bytes(place) // 2 // record))
    pool = memory.buffer(place, tokens * record)
    item = 4 if layout.dtype == "float32" else 2
    room = memory.room_bytes(place) // (5 * width * item)
    fresh = min(room, max(rows * new for rows, new in (*sizes.prefill, *sizes.appends)))
    fresh = max(FIRST_TOKENS, fresh)
    qkv = memory.array((fresh, 3 * width), layout.dtype, tier=place)
    out = memory.array((fresh, width), layout.dtype, tier=place)
    cache = Cache(meter, place, layout, pool, tokens, qkv, out)
    first = backend.cache_rows([backend.view(pool, 0, (FIRST_TOKENS * record,), "uint8")], layout)
    k, v = qkv[:FIRST_TOKENS, width : 2 * width], qkv[:FIRST_TOKENS, 2 * width :]
    backend.append(first, backend.segments([0], [FIRST_TOKENS]), k, v)
    _spread(cache, FIRST_TOKENS * record)
    return cache


def _spread(cache: Cache, done: int) -> None:
    """Copy what lies in the first `done` bytes of the pool all over it."""
    backend, whole = cache.meter.backend, cache.tokens * cache.layout.record_bytes
    if cache.place == "host":
        backend.mark().wait()
        spread(backend.host_memory(cache.pool), done)
        return
    flat: Any = backend.view(cache.pool, 0, (whole,), "uint8")
    while done < whole:
        size = min(done, whole - done)
        backend.assign(flat[done : done + size], flat[:size])
        done += size


def _decodes(cache: Cache) -> Generator[Point, None, None]:
    """One new token for every row: over the bytes of the records that are read."""
    for rows, context in _within(cache, cache.meter.sizes.decode, rows_only=True):
        nbytes = rows * context * cache.layout.record_bytes
        yield Point(nbytes, f"{rows} rows of {context} tokens", cache.attends(rows, context - 1, 1))


def _prefills(cache: Cache) -> Generator[Point, None, None]:
    """New rows: over FLOPs, 4 E for every pair of a query and a key that it sees (FlexGen, appendix A.3, causal)."""
    for rows, prompt in _within(cache, cache.meter.sizes.prefill):
        flops = 4 * cache.width * rows * (prompt * (prompt + 1) // 2)
        yield Point(flops, f"{rows} rows of {prompt} tokens", cache.attends(rows, 0, prompt))


def _appends(cache: Cache) -> Generator[Point, None, None]:
    """New records: over their bytes."""
    for rows, new in _within(cache, cache.meter.sizes.appends):
        nbytes = rows * new * cache.layout.record_bytes
        yield Point(nbytes, f"{rows} rows of {new} tokens", cache.appends(rows, new))


def _within(cache: Cache, shapes: Sequence[tuple[int, int]], rows_only: bool = False) -> Iterator[tuple[int, int]]:
    """The shapes that the pool, and the queries, have room for."""
    for rows, tokens in shapes:
        if rows * tokens <= cache.tokens and (rows if rows_only else rows * tokens) <= cache.qkv.shape[0]:
            yield rows, tokens
