"""The kinds of cases by name, how often each comes, and which case a number stands for."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from hostile_run import array_files, command_lines, endings, folders, inputs, placements, weight_files
from hostile_run.shelf import Shelf
from hostile_run.trial import MADE, OUT, Trial


class Kind(NamedTuple):
    """How a case of this kind is made, and how many of a hundred are of it."""

    make: Callable[[Random, Shelf, Path], Trial]
    share: int


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "weight-file": Kind(weight_files.trial, 18),
        "checkpoint": Kind(folders.checkpoint, 16),
        "tokenizer": Kind(folders.tokenizer, 8),
        "input": Kind(inputs.trial, 17),
        "array-file": Kind(array_files.trial, 4),
        "command-line": Kind(command_lines.trial, 14),
        "placement": Kind(placements.trial, 7),
        "signal": Kind(endings.signals, 6),
        "disk": Kind(endings.disks, 3),
        "stream": Kind(endings.streams, 3),
        "limit": Kind(endings.limits, 2),
        "change": Kind(endings.changes, 2),
    }
)


def kind_of(number: int) -> str:
    """The kind of case `number`: any hundred after one another hold each kind as often as its share says."""
    within = number % 100 * 37 % 100  # neighbours are of different kinds
    for name, kind in KINDS.items():
        within -= kind.share
        if within < 0:
            return name
    raise AssertionError("the shares of the kinds must sum to 100")


def numbers(wanted: frozenset[str]) -> Iterator[int]:
    """The numbers of cases of the kinds wanted, from 0 on; of all kinds if none is named."""
    return (number for number in count() if not wanted or kind_of(number) in wanted)


def make(seed: int, number: int, shelf: Shelf, folder: Path) -> Trial:
    """Case `number` of a run, in `folder`, which is made: the same for the same seed."""
    for name in MADE:
        (folder / name).mkdir(parents=True)
    (folder / OUT / "old.json").write_text("{}")
    return KINDS[kind_of(number)].make(Random(f"{seed} {number}"), shelf, folder)
