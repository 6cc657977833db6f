"""A job on a model, and the limits of a search, as plain numbers; it knows no file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind
from flexref.machine.arrays import Numbers

LEAST_FULL = 1e-3
"""The least part of a job in which its block counts as full: what only a full one has must cost something."""


@dataclass(frozen=True)
class Scoring:
    """What a job scores in place of generating: `tokens` of a row, the mean, and `tokens_most`.

    There are logits of `at_once` tokens by one tile of the head of `tile_rows` vocabulary rows at a time; those of
    `slots` such pieces are under way, on the device and on the host.
    """

    tokens: float
    tokens_most: int
    at_once: int
    tile_rows: int
    slots: int


@dataclass(frozen=True)
class Turnover:
    """How rows come and go in a block whose rows differ in new tokens, so that it stays full until none is waiting.

    A row lives for as many passes as it has new tokens: its prompt is read in the first. `passes`: the mean over the
    rows. `past_tokens`: records that a row finds in its cache, the mean over all passes but every row's first.
    """

    passes: float
    past_tokens: float

    @classmethod
    def of(cls, kinds: Sequence[tuple[int, int, int]]) -> "Turnover":
        """From (prompt tokens, new tokens, how many such rows) of every kind; some have more than one new token."""
        rows = sum(count for _, _, count in kinds)
        passes = sum(new * count for _, new, count in kinds)
        # Decode pass p of a row, from 1 to new - 1, finds prompt + p - 1 records.
        past = sum(((new - 1) * prompt + (new - 1) * (new - 2) // 2) * count for prompt, new, count in kinds)
        return cls(passes / rows, past / (passes - rows))


@dataclass(frozen=True)
class Room:
    """Tokens for which a group has room, for each of its rows, in a job whose rows differ.

    `mean`: where all of the job's rows are in the block at once. Of others `spare`, shared by the square root of a
    group's rows, is added; none needs more than `most`.
    """

    mean: float
    spare: float
    most: int

    def of_row(self, rows_most: Numbers, whole: npt.NDArray[np.bool_]) -> Numbers:
        """(N,) in groups of `rows_most`; `whole`: where the block has all of the job's rows."""
        each = np.minimum(self.mean + np.where(whole, 0.0, self.spare) / np.sqrt(rows_most), self.most)
        return np.maximum(each, self.most / rows_most)  # the longest row finds room alone


@dataclass(frozen=True)
class Rooms:
    """The room for prompts that a pass reads and for records of caches, in a job of `rows` that differ."""

    rows: int
    prompts: Room
    records: Room

    def prompt_tokens(self, rows_most: Numbers, held: Numbers) -> Numbers:
        """(N,) tokens of a row's prompt, in blocks of `held` rows in groups of `rows_most`."""
        return self.prompts.of_row(rows_most, held >= self.rows)

    def capacity_tokens(self, rows_most: Numbers, held: Numbers) -> Numbers:
        """(N,) records of a row."""
        return self.records.of_row(rows_most, held >= self.rows)


@dataclass(frozen=True)
class Task:
    """One job on one model, before shares, rows per group and groups are chosen.

    `stored` is how layer matrices are stored (a key of `Machine.products`: "float16", "float32", "int4"), `dense` the
    type of tables, biases and norms. `stage_bytes` are the weight bytes of every stage of a pass in order, which is
    what streams, and `stage_kinds` what each is. `gathered_bytes` are those of a
    token table that no stage streams (an untied one): it only has a home.

    `record_bytes` is one token of one layer in the cache. Times follow from `prompt_tokens`, the mean over the rows,
    memory from `prompt_tokens_most`, or where rows differ from `rooms`; every row gets `new_tokens`, or with `turnover`
    at most as many. `attention_on` is where decode attention over caches off the device is computed; on the host it is
    for `host_attention_share` of these rows, None: as many as is best.

    `workspace_bytes_fixed` and `workspace_bytes_per_token` (of a group's prefill) are device bytes beside the stores;
    `expanded_bytes` those that a stage's expanded matrices take where several groups share them, 0 if there are none.

    `scoring`: set for a job of one pass that scores and generates nothing; a cache lasts for one visit of a layer.
    `new_tokens` is 1 then.
    """

    spec: ModelSpec
    stored: str
    dense: str
    stage_bytes: tuple[int, ...]
    stage_kinds: tuple[StageKind, ...]
    gathered_bytes: int
    cache_scheme: str
    record_bytes: int
    prompt_tokens: float
    prompt_tokens_most: int
    new_tokens: int
    attention_on: str
    overlap: bool
    workspace_bytes_fixed: int
    workspace_bytes_per_token: float
    expanded_bytes: int
    scoring: Scoring | None = None
    turnover: Turnover | None = None
    rooms: Rooms | None = None
    host_attention_share: float | None = None

    @property
    def in_place(self) -> tuple[float, float]:
        """The least and the most of the cache off the device that attention on the host may read in place, a share."""
        if self.attention_on == "device" or self.scoring is not None:
            return 0.0, 0.0
        share = self.host_attention_share
        return (0.0, 1.0) if share is None else (share, share)

    @property
    def row_tokens(self) -> float:
        """Tokens that a row generates, on average."""
        return self.new_tokens if self.turnover is None else self.turnover.passes

    def turned_over(self, rows: float, held: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """How `rows` run in blocks of `held` places, with `turnover`: (full blocks, rows of thin ones, how many), (N,).

        A block's time is that in which every one of its rows is followed by another, on average. The longest rows come
        first, so that a block is full to the end, unless it has so many places that the longest row outlasts all that
        come after one another in any other place: then it counts as blocks of the rows that it has on average.
        """
        assert self.turnover is not None
        full, longest = rows / held, self.new_tokens / self.turnover.passes
        thin = full < longest
        thin_rows, times = np.where(thin, rows / longest, 0.0), np.where(thin, longest, 0.0)
        return np.where(thin, LEAST_FULL, full), thin_rows, times


@dataclass(frozen=True)
class Limits:
    """How far a search goes, and the bounds that its answers must keep.

    `rows` are those of the whole job; None: as many as fill blocks. `rows_per_group` and `groups` are kept where they
    are not None. `max_block_s` bounds the prefill and decode of a block together; `max_disk_write_bytes` what is
    spilled to disk by the whole job, or by a block where `rows` is None.
    """

    rows_per_group_most: int
    groups_most: int
    rows: int | None
    rows_per_group: int | None = None
    groups: int | None = None
    max_block_s: float | None = None
    max_disk_write_bytes: float | None = None
