"""Clauses on memory, views, the workspace and its frames; a clause is `clause(backend, data)`."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import Array, Backend
from flexref.backend.workspace import RESULT_ALIGNMENT_BYTES
from flexref.errors import CapacityError
from flexref.testing.bench import Bench, Guarded, assert_raises, assert_same_bits, assert_shape
from flexref.testing.strategies import Values, arrays, numbers, seeds
from flexref.units import ALIGNMENT_BYTES

DTYPES = ("float32", "float16", "int32", "uint8")

sizes = st.integers(1, 9)


def _integers(shape: tuple[int, ...], dtype: str, seed: int) -> Values:
    """Any bytes that are numbers of `dtype`, and none that is not a number."""
    if dtype.startswith("float"):
        return numbers(shape, dtype, "normal", seed)
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def it_describes_itself(backend: Backend, data: st.DataObject) -> None:
    """`describe` names devices and versions in text, which goes into reports, and says the same each time."""
    found: Any = backend.describe()
    again = backend.describe()
    assert found == again, f"describe() gives {found}, then {again}, needed the same each time"
    names = [*found.devices, *found.versions, *found.versions.values()]
    assert all(isinstance(name, str) and name for name in names), f"describe() gives {found}, needed names in text"
    assert isinstance(found.devices, tuple), f"devices of describe() is {found.devices!r}, needed a tuple"


def allocated_memory_has_the_asked_size(backend: Backend, data: st.DataObject) -> None:
    """`allocate` gives exactly so many bytes of either tier, and asks nothing of their number."""
    with Bench(backend) as bench:
        for tier in ("device", "host"):
            nbytes = data.draw(st.integers(1, 3 * ALIGNMENT_BYTES))
            given = bench.buffer(tier, nbytes).nbytes
            assert given == nbytes, f"allocate({tier!r}, {nbytes}) has {given} bytes, needed {nbytes}"


def free_memory_is_reported(backend: Backend, data: st.DataObject) -> None:
    """`free_bytes` of both tiers is a number of bytes, and what it reports more than once can be asked for."""
    with Bench(backend) as bench:
        for tier in ("device", "host"):
            free = backend.free_bytes(tier)
            assert isinstance(free, int), f"free_bytes({tier!r}) gives {free!r}, needed an int"
            assert free > 0, f"free_bytes({tier!r}) gives {free}, needed more than 0"
            bench.buffer(tier, min(free, 1 << 16))


def views_have_their_shape(backend: Backend, data: st.DataObject) -> None:
    """`view` and slices of the leading and of the last axis have the shapes that numpy's would have."""
    with Bench(backend) as bench:
        rows, columns = data.draw(sizes), data.draw(sizes)
        dtype = data.draw(st.sampled_from(DTYPES))
        buffer = bench.buffer("device", 4096 + rows * columns * 4)
        x = backend.view(buffer, 4096, (rows, columns), dtype)
        assert_shape(x, (rows, columns), "view")
        first, last = sorted((data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows))))
        left, right = sorted((data.draw(st.integers(0, columns)), data.draw(st.integers(0, columns))))
        assert_shape(x[first:last], (last - first, columns), "x[first:last]")
        assert_shape(x[:, left:right], (rows, right - left), "x[:, left:right]")
        assert_shape(x[first:last, left:right], (last - first, right - left), "x[first:last, left:right]")


def a_view_beyond_its_buffer_is_refused(backend: Backend, data: st.DataObject) -> None:
    """`view` past the end, or before the start, raises IndexError at once and reads nothing."""
    with Bench(backend) as bench:
        buffer = bench.buffer("device", 4096)
        beyond = data.draw(st.integers(4096 - 3 * 4 + 1, 9000)) // 4 * 4
        if beyond + 12 > 4096:
            assert_raises(IndexError, lambda: backend.view(buffer, beyond, (3,), "float32"), "view beyond the end")
        assert_raises(IndexError, lambda: backend.view(buffer, -4, (1,), "float32"), "view before the start")


def host_memory_is_aligned_and_writable(backend: Backend, data: st.DataObject) -> None:
    """`host_memory` shows the buffer's own bytes, the same ones at every call, at a multiple of `ALIGNMENT_BYTES`."""
    with Bench(backend) as bench:
        nbytes = data.draw(st.integers(1, 2 * ALIGNMENT_BYTES))
        buffer = bench.buffer("host", nbytes)
        memory = backend.host_memory(buffer)
        assert memory.dtype == np.uint8, f"host_memory is {memory.dtype}, needed uint8"
        assert memory.shape == (nbytes,), f"host_memory has shape {memory.shape}, needed {(nbytes,)}"
        beyond = memory.ctypes.data % ALIGNMENT_BYTES
        assert beyond == 0, f"host memory starts {beyond} bytes after a multiple of {ALIGNMENT_BYTES}, needed one"
        content = _integers((nbytes,), "uint8", data.draw(seeds))
        memory[:] = content
        assert_same_bits(backend.host_memory(buffer).copy(), content, "host_memory, asked again")


def uploaded_values_come_back(backend: Backend, data: st.DataObject) -> None:
    """`download(upload(values))` is `values`, of every type, whatever happens to either host array meanwhile."""
    with Bench(backend) as bench:
        if data.draw(st.booleans()):
            bench.workspace()
        dtype = data.draw(st.sampled_from(DTYPES))
        shape = data.draw(st.sampled_from(((7,), (3, 5), (1, 1), (2, 300))))
        values = _integers(shape, dtype, data.draw(seeds))
        source = values.copy()
        x = backend.upload(source)
        source[...] = 1
        assert_shape(x, shape, "upload")
        found = backend.download(x)
        assert_same_bits(found.copy(), values, "download of upload")
        found[...] = 2
        assert_same_bits(backend.download(x), values, "download after its first copy was written to")


def views_share_memory(backend: Backend, data: st.DataObject) -> None:
    """What is written through a view or a slice is seen through every other one, and nothing beside it changes."""
    with Bench(backend) as bench:
        rows, columns = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
        dtype = data.draw(st.sampled_from(DTYPES))
        content = _integers((rows, columns), dtype, data.draw(seeds))
        buffer = bench.buffer("device", content.nbytes + 512)
        x = backend.upload(content, out=backend.view(buffer, 256, content.shape, dtype))
        left = data.draw(st.integers(0, columns - 1))
        right = data.draw(st.integers(left + 1, columns))
        first = data.draw(st.integers(0, rows - 1))
        patch = _integers((rows - first, right - left), dtype, data.draw(seeds))
        backend.upload(patch, out=x[first:, left:right])
        content[first:, left:right] = patch
        assert_same_bits(bench.read(x), content, "the array after a write through its slice")
        again = backend.view(buffer, 256, content.shape, dtype)
        assert_same_bits(bench.read(again), content, "another view of the same bytes")
        assert_same_bits(bench.read(x[first:, left:right]), patch, "the slice itself")


def assign_copies_between_tiers(backend: Backend, data: st.DataObject) -> None:
    """`assign` makes target equal to source, slices of wider arrays too, on either tier, in order with operators."""
    with Bench(backend) as bench:
        shape, dtype = (data.draw(sizes), data.draw(sizes)), data.draw(st.sampled_from(DTYPES))
        values, other = (_integers(shape, dtype, data.draw(seeds)) for _ in range(2))
        tiers = data.draw(st.lists(st.sampled_from(("device", "host")), min_size=2, max_size=4))
        margin = st.sampled_from((0, 3))
        places = [Guarded(bench, other, data.draw(margin), data.draw(margin), tier) for tier in tiers]
        backend.assign(places[0].array, backend.upload(values))
        for source, target in pairwise(places):
            backend.assign(target.array, source.array)
        backend.assign(places[0].array, backend.upload(other))
        assert_same_bits(places[0].read(), other, f"an array on {tiers[0]} after assign")
        for tier, place in zip(tiers[1:], places[1:], strict=True):
            assert_same_bits(place.read(), values, f"an array on {tier} after assign")
            place.assert_untouched_around(f"assign on {tier}")


def results_fit_the_workspace_or_are_refused(backend: Backend, data: st.DataObject) -> None:
    """`empty` raises `CapacityError` when the workspace is full, takes nothing then, and works on afterwards.

    A result takes its bytes, rounded up to `RESULT_ALIGNMENT_BYTES`, neither more nor less: the engine counts on it.
    """
    with Bench(backend) as bench:
        places = data.draw(st.integers(1, 6))
        bench.workspace(places * RESULT_ALIGNMENT_BYTES)
        too_many = (places * RESULT_ALIGNMENT_BYTES + 1,)
        with backend.frame():
            for _ in range(places):
                count = data.draw(st.integers(1, RESULT_ALIGNMENT_BYTES // 4))
                assert_raises(CapacityError, lambda: backend.empty(too_many, "uint8"), "empty in too small a workspace")
                assert_shape(backend.empty((1, count), "float32"), (1, count), "empty")
            assert_raises(CapacityError, lambda: backend.empty((1,), "uint8"), "empty in a full workspace")


def frames_give_back(backend: Backend, data: st.DataObject) -> None:
    """A frame gives back what was taken in it, at its end or when an error leaves it, nested or one after another."""
    with Bench(backend) as bench:
        places = data.draw(st.integers(2, 5))
        bench.workspace(places * RESULT_ALIGNMENT_BYTES)
        nbytes = (RESULT_ALIGNMENT_BYTES,)
        for _ in range(data.draw(st.integers(2, 3))):
            with backend.frame():
                backend.empty(nbytes, "uint8")
                for _ in range(2):
                    with backend.frame():
                        for _ in range(places - 1):
                            backend.empty(nbytes, "uint8")

        def leave_by_an_error() -> None:
            with backend.frame():
                for _ in range(places):
                    backend.empty(nbytes, "uint8")
                raise KeyError

        for _ in range(2):
            assert_raises(KeyError, leave_by_an_error, "a frame that is left by an error")


def results_take_from_the_workspace(backend: Backend, data: st.DataObject) -> None:
    """`upload`, `linear` and `layer_norm` without `out` take from the workspace: so they fail when it is full."""
    with Bench(backend) as bench:
        rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 9))
        x = bench.array(numbers((rows, width), bench.dtype, "normal", data.draw(seeds)))
        w = bench.array(numbers((width, width), bench.dtype, "normal", data.draw(seeds)))
        bench.workspace(RESULT_ALIGNMENT_BYTES)
        host_values = np.zeros((rows, width), np.float32)
        calls: dict[str, Callable[[], object]] = {
            "upload": lambda: backend.upload(host_values),
            "linear": lambda: backend.linear(x, w, None),
            "layer_norm": lambda: backend.layer_norm(x, None, None, 1e-5),
        }
        for name, call in calls.items():
            with backend.frame():
                call()
                assert_raises(CapacityError, call, f"{name} with a full workspace")


def live_results_never_overlap(backend: Backend, data: st.DataObject) -> None:
    """A result keeps its values while later ones are made, in inner frames too; all lie in the workspace's buffer."""
    with Bench(backend) as bench:
        memory = bench.workspace(1 << 15)
        held: list[tuple[Array, Values]] = []

        def make() -> None:
            values = data.draw(arrays((data.draw(sizes), data.draw(sizes)), kinds=("normal",)))
            held.append((backend.upload(values), values))

        with backend.frame():
            make()
            for _ in range(data.draw(st.integers(1, 3))):
                with backend.frame():
                    before = len(held)
                    make()
                    make()
                    for x, values in held:
                        assert_same_bits(backend.download(x), values, "a live result")
                    content = bench.bytes_of(memory).tobytes()
                    inside = [values.tobytes() in content for _, values in held]
                    assert all(inside), (
                        f"{inside.count(False)} of {len(held)} results lie outside the workspace's buffer, needed none"
                    )
                    del held[before:]
                make()
            for x, values in held:
                assert_same_bits(backend.download(x), values, "a result after inner frames")


def the_workspace_remembers_its_peak(backend: Backend, data: st.DataObject) -> None:
    """`workspace_peak_bytes` is the most that results ever held at once, and starts again with a new workspace."""
    with Bench(backend) as bench:
        for _ in range(2):
            bench.workspace(1 << 16)
            peak = backend.workspace_peak_bytes()
            assert peak == 0, f"workspace_peak_bytes of a new workspace is {peak}, needed 0"
            most = 0
            for _ in range(data.draw(st.integers(1, 3))):
                with backend.frame():
                    count = data.draw(st.integers(1, 5))
                    for _ in range(count):
                        backend.empty((RESULT_ALIGNMENT_BYTES,), "uint8")
                    most = max(most, count * RESULT_ALIGNMENT_BYTES)
            found = backend.workspace_peak_bytes()
            assert found == most, f"workspace_peak_bytes is {found}, needed {most}, the most that results held at once"
