"""Times a port's `append` and `attend` on caches of random tokens, on the device and the host; it knows no layer."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from flexref.backend.protocol import Buffer
from flexref.backend.records import RecordLayout
from flexref.machine.curves import Curve
from flexref.machine.machine import attention_key
from flexref.profile.environment import host_cache_bytes
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import GROUP_SIZE, Memory, spread
from flexref.profile.points import Call, Point

SCHEMES = ("none", "int4")
"""The schemes in which a cache may hold its records."""

FIRST_TOKENS = 32
"""So many random records are appended, then copied over the whole cache: that is faster, and reading costs the same."""

NARROWER = 4
"""A port that computes on the host is measured with a quarter of the width: it runs smaller models, and its seconds
depend more on rows than on bytes."""

HOST_PIECE_BYTES = 48 << 20
"""Records of one call beside other work: enough for every thread, and few enough for some calls in that time."""

HANDLES_MOST, HOST_HANDLES_MOST = 64, 2048
"""Bound how many caches take turns, on the device and on the host, whose processors have larger caches."""

HOST_CACHES = 2
"""Records on the host fill so many of its largest cache, so that they come from memory as those of a job do."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Memory full of valid records (`pool`) on the device or the host (`place`), which holds `tokens` of them.

    Any part of it can serve as a row's cache. `qkv` (T, 3E) and `out` (T, E) lie in the same place.
    """

    meter: Meter
    place: str
    layout: RecordLayout
    pool: Buffer
    tokens: int
    qkv: Any
    out: Any

    @property
    def width(self) -> int:
        """Width E of queries, keys and values each."""
        return self.layout.heads * self.layout.head_width

    @property
    def blocks(self) -> bool:
        """Whether calls end before they return: those of the host's cores do, and no port records them."""
        return self.place == "host"

    def handles(self, rows: int, tokens: int) -> list[Any]:
        """Handles of caches of `rows` rows of `tokens` tokens each, on different parts of the pool, as many as fit."""
        backend, size = self.meter.backend, tokens * self.layout.record_bytes
        found = []
        most = HOST_HANDLES_MOST if self.place == "host" else HANDLES_MOST
        for first in range(0, min(most, self.tokens // (rows * tokens)) * rows, rows):
            records = [backend.view(self.pool, (first + row) * size, (size,), "uint8") for row in range(rows)]
            found.append(backend.cache_rows(records, self.layout))
        return found

    def attends(self, rows: int, past: int, new: int) -> list[Call]:
        """Calls of `attend` for `rows` rows, each with `past` tokens in its cache before and `new` tokens to attend."""
        backend, width = self.meter.backend, self.width
        segments = backend.segments([past] * rows, [new] * rows)
        q, out = self.qkv[: rows * new, :width], self.out[: rows * new]
        scale = self.layout.head_width**-0.5
        return [partial(backend.attend, handle, segments, q, scale, out) for handle in self.handles(rows, past + new)]

    def appends(self, rows: int, new: int) -> list[Call]:
        """Calls of `append` with `new` tokens for each of `rows` rows."""
        backend, width = self.meter.backend, self.width
        segments = backend.segments([0] * rows, [new] * rows)
        k, v = self.qkv[: rows * new, width : 2 * width], self.qkv[: rows * new, 2 * width :]
        return [partial(backend.append, handle, segments, k, v) for handle in self.handles(rows, new)]


@dataclass(frozen=True, slots=True)
class Attention:
    """Curves of attention in decode and prefill, by `attention_key`; and of `append`, by the operator's name."""

    decode: dict[str, Curve]
    prefill: dict[str, Curve]
    appends: dict[str, Curve]


def attention_curves(meter: Meter) -> Attention:
    """Measure attention and appends on the device, and on the host if the port can attend there."""
    found = Attention({}, {}, {})
    places = {"device": meter.sizes.head_widths}
    if meter.backend.caps.attends_on_host:
        places["host"] = meter.sizes.host_head_widths
    keys = [
        (place, scheme, head_width)
        for place, head_widths in places.items()
        for scheme, head_width in product(SCHEMES, head_widths)
    ]
    for place, scheme, head_width in meter.pace.parts(keys):
        _measure(meter, (place, scheme, head_width), found, appends=head_width == places[place][-1])
    return found


def _measure(meter: Meter, where: tuple[str, str, int], found: Attention, appends: bool) -> None:
    """Add the curves of one place, cache scheme and head width (`where`) to `found`."""
    place, scheme, head_width = where
    key = attention_key(*where)
    meter.tell(f"attention on {place} over a cache of scheme {scheme}, heads of width {head_width}")
    with meter.memory() as memory:
        sizes = meter.sizes
        new = max(rows * tokens for rows, tokens in (*sizes.prefill, *sizes.appends))
        records = max(new, *(rows * tokens for rows, tokens in sizes.decode))
        begin = meter.clock()
        cache = _filled(meter, memory, place, _layout(meter, scheme, head_width), (records, new))
        if place == "host":  # a large one, which would take the time of all curves
            meter.pace.excuse(meter.clock() - begin)
        for kind in meter.pace.parts(("decode", "prefill", "append") if appends else ("decode", "prefill")):
            if kind == "decode":
                name = f"decode attention, {key}"
                found.decode[key] = meter.curve(name, _decodes(cache), len(meter.sizes.decode))
            elif kind == "prefill":
                name = f"prefill attention, {key}"
                found.prefill[key] = meter.curve(name, _prefills(cache), len(meter.sizes.prefill))
            else:
                name = f"append {scheme}" + (" host" if place == "host" else "")
                found.appends[name] = meter.curve(name, _appends(cache), len(meter.sizes.appends))


def host_attends(meter: Meter, memory: Memory, scheme: str) -> list[Call]:
    """Calls of `attend` on the host with one new token for every row, over caches of `HOST_PIECE_BYTES` at most."""
    layout = _layout(meter, scheme, meter.sizes.host_head_widths[-1])
    most = HOST_PIECE_BYTES // layout.record_bytes
    shapes = sorted(meter.sizes.decode, key=lambda shape: shape[0] * shape[1])
    shapes = shapes[: max(1, sum(rows * context <= most for rows, context in shapes))]
    cache = _filled(meter, memory, "host", layout, (shapes[-1][0] * shapes[-1][1], shapes[-1][0]))
    rows, context = list(_within(cache, shapes, rows_only=True))[-1]
    calls = cache.attends(rows, context - 1, 1)
    meter.settled(calls[0])  # what the first has to compile is none of its time on a lane
    return calls


def _layout(meter: Meter, scheme: str, head_width: int) -> RecordLayout:
    """Records with heads of that width, as many as there are in a width that is right for the port."""
    width = meter.sizes.attention_width // (1 if meter.asynchronous else NARROWER)
    return RecordLayout(max(1, width // head_width), head_width, backend_dtype(meter.backend), scheme, GROUP_SIZE)


def _filled(meter: Meter, memory: Memory, place: str, layout: RecordLayout, needed: tuple[int, int]) -> Cache:
    """A cache for the records that are `needed`, and larger than a processor's caches; at most half of the room. The
    second of `needed`: how many tokens are new at once."""
    backend, width, record = meter.backend, layout.heads * layout.head_width, layout.record_bytes
    apart = place == "host" and not backend.caps.one_memory
    rotated = max(meter.rotated_bytes, HOST_CACHES * host_cache_bytes() if apart else 0)
    wanted = max(needed[0], rotated // record)
    tokens = max(FIRST_TOKENS, min(wanted, memory.room_bytes(place) // 2 // record))
    pool = memory.buffer(place, tokens * record)
    item = 4 if layout.dtype == "float32" else 2
    room = memory.room_bytes(place) // (5 * width * item)
    fresh = max(FIRST_TOKENS, min(room, needed[1]))
    qkv = memory.array((fresh, 3 * width), layout.dtype, tier=place)
    out = memory.array((fresh, width), layout.dtype, tier=place)
    cache = Cache(meter, place, layout, pool, tokens, qkv, out)
    first = backend.cache_rows([backend.view(pool, 0, (FIRST_TOKENS * record,), "uint8")], layout)
    k, v = qkv[:FIRST_TOKENS, width : 2 * width], qkv[:FIRST_TOKENS, 2 * width :]
    meter.settled(partial(backend.append, first, backend.segments([0], [FIRST_TOKENS]), k, v))
    _spread(cache, FIRST_TOKENS * record)
    return cache


def _spread(cache: Cache, done: int) -> None:
    """Fill the pool with copies of its first `done` bytes."""
    backend, whole = cache.meter.backend, cache.tokens * cache.layout.record_bytes
    if cache.place == "host":
        backend.mark().wait()
        spread(backend.host_memory(cache.pool), done)
        return
    flat: Any = backend.view(cache.pool, 0, (whole,), "uint8")
    call = cache.meter.settled  # the first may have to be compiled
    while done < whole:
        size = min(done, whole - done)
        call(partial(backend.assign, flat[done : done + size], flat[:size]))
        done += size


def _decodes(cache: Cache) -> Generator[Point, None, None]:
    """Points with one new token for every row; their size is the bytes of the records that are read."""
    for rows, context in _within(cache, cache.meter.sizes.decode, rows_only=True):
        nbytes = rows * context * cache.layout.record_bytes
        yield Point(nbytes, f"{rows} rows of {context} tokens", cache.attends(rows, context - 1, 1), cache.blocks)


def _prefills(cache: Cache) -> Generator[Point, None, None]:
    """Points of whole prompts; their size is in FLOPs: 4 E for every visible pair of a query and a key.

    Source: FlexGen, appendix A.3, here with the causal mask.
    """
    for rows, prompt in _within(cache, cache.meter.sizes.prefill):
        flops = 4 * cache.width * rows * (prompt * (prompt + 1) // 2)
        yield Point(flops, f"{rows} rows of {prompt} tokens", cache.attends(rows, 0, prompt), cache.blocks)


def _appends(cache: Cache) -> Generator[Point, None, None]:
    """Points of appends; their size is the bytes of the new records."""
    for rows, new in _within(cache, cache.meter.sizes.appends):
        nbytes = rows * new * cache.layout.record_bytes
        yield Point(nbytes, f"{rows} rows of {new} tokens", cache.appends(rows, new), cache.blocks)


def _within(cache: Cache, shapes: Sequence[tuple[int, int]], rows_only: bool = False) -> Iterator[tuple[int, int]]:
    """Those of `shapes`, (rows, tokens), for which the pool and the queries are large enough."""
    for rows, tokens in shapes:
        if rows * tokens <= cache.tokens and (rows if rows_only else rows * tokens) <= cache.qkv.shape[0]:
            yield rows, tokens
