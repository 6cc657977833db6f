"""What is always so of a block at work: who lies where, which prefixes are there, and that nothing is left of it."""

from collections import Counter
from typing import Any

from flexref.block.group import Group
from flexref.block.rows import SharedPrefix
from flexref.block.state import BlockState
from flexref.units import Tier


def fills(spans: list[tuple[int, int]], tokens: int) -> bool:
    """Whether runs of records, in whatever order, fill all places, and each of them once."""
    edges = [0, *(edge for span in sorted(spans) for edge in span), tokens]
    return all(end == start for end, start in zip(edges[::2], edges[1::2], strict=True))


def look_at_places(block: BlockState, chunk: int | None) -> None:
    """Every place is free or one row's, and rows lie where they may and are fed no more than there is room for."""
    for group, room, places in zip(block.groups, block.plan.cache.groups, block.rows.admission.places, strict=True):
        homes = [row.place for row in group.rows if row.place is not None]
        assert len(homes) == len(group.rows) == room.rows - places.rows_left
        free = list(places.free_runs())
        for tier in Tier:
            taken = [(place.start, place.end) for place in homes if place.home is tier]
            spans = [span[1:] for span in free if span[0] is tier] + taken
            assert fills(spans, room.tokens[tier]), f"{tier}: places were lost, or used twice"
            cut = room.crossing_tokens(tier)
            assert all(place.in_place == (place.start >= cut) for place in homes if place.home is tier)
            own = [row for row in group.in_pass if row.place.home is tier and not row.place.shared]
            assert sum(row.new for row in own) <= room.new_tokens[tier]
        assert sum(row.new for row in group.in_pass if row.place.shared) <= room.prefix_tokens
        for row in group.rows:
            assert row.place is not None
            assert row.lengths.capacity_tokens == row.place.capacity_tokens
        for of_row in group.in_pass:
            assert chunk is None or of_row.new <= chunk
            assert of_row.own_past + of_row.new <= of_row.place.capacity_tokens


def look_at_prefixes(block: BlockState) -> None:
    """Those that rows begin with are there, are read by one group before rows go on from them, and lie apart."""
    places, used = block.rows.admission.prefixes, Counter[SharedPrefix]()
    for group in block.groups:
        used.update(row.prefix for row in group.rows if row.prefix is not None)
    idle = list(places._idle)
    assert not used.keys() & set(idle)
    assert len(set(idle)) == len(idle)
    there = [*used, *idle]
    spans = [(prefix.place.start, prefix.place.end) for prefix in there if prefix.place is not None]
    assert len(spans) == len(there), "rows begin with a prefix that is nowhere"
    assert fills([*spans, *places._places._free], block.plan.cache.prefix_tokens)
    for prefix in there:
        assert prefix.users == used[prefix]
        assert prefix.reader is not None
        seen = prefix.reader.seen
        assert prefix.read_in is not None or seen < len(prefix.tokens)
        readers = [group for group in block.groups if prefix in group.reads]
        assert len(readers) == (seen < len(prefix.tokens)), "a prefix is read by one group, until it has been read"
    for group in block.groups:
        look_at_who_reads(group, set(used))


def look_at_who_reads(group: Group, used: set[SharedPrefix]) -> None:
    """The pass feeds rows that begin with a prefix only once it has been read, or is read before them."""
    for row, of_row in zip(group.fed, group.in_pass, strict=True):
        if row.prefix is not None:
            assert of_row.prefix is row.prefix.place
            assert of_row.past >= len(row.prefix.tokens)
            assert row.prefix.is_read(group._pass, group.number)
            assert row.prompt[: len(row.prefix.tokens)] == row.prefix.tokens
    assert all(prefix in used for prefix in group.reads if prefix.group == group.number)


def look_at_what_is_left(block: BlockState) -> None:
    """All rows have left: every place is free again."""
    admission, cache = block.rows.admission, block.plan.cache
    assert admission.admitted == admission.retired
    assert not any(group.rows or group.reads for group in block.groups)
    for room, places in zip(cache.groups, admission.places, strict=True):
        whole = [(tier, 0, room.tokens[tier]) for tier in Tier if room.tokens[tier]]
        assert list(places.free_runs()) == whole, "places were lost"
        assert places.rows_left == room.rows
    prefixes: Any = admission.prefixes
    assert not prefixes._idle
    assert prefixes._places._free == ([(0, cache.prefix_tokens)] if cache.prefix_tokens else [])
