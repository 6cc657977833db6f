"""The rows that are timed, equal ones or those of a file of lengths, and their random prompts; it times nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flexref.architecture.flops import decode_flops, prefill_flops
from flexref.architecture.spec import ModelSpec
from flexref.bench.suites import Arguments
from flexref.block.counted_rows import CountedRows
from flexref.block.rows import RowLengths
from flexref.errors import PromptError
from flexref.planner.lengths_file import read_lengths
from flexref.policy import Policy
from flexref.text.prompts import Prompt

MOST_ROWS = 1 << 20
"""Bounds the rows of a benchmark: they are really there."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be timed: the rows in order, each with its prompt's tokens and its new ones."""

    rows: CountedRows

    @classmethod
    def alike(cls, rows: int, prompt_tokens: int, new_tokens: int) -> "Workload":
        """`rows` prompts of equal length, and so many new tokens for each."""
        return cls(CountedRows.of_runs([prompt_tokens], [new_tokens], [rows]))

    @property
    def row(self) -> RowLengths | None:
        """What every row is; None if they differ."""
        return self.rows[0] if len(self.rows.kinds) == 1 else None

    @property
    def generated_tokens(self) -> int:
        """New tokens of all rows."""
        return self.rows.summary.new_tokens.total

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return self.rows.summary.prompt_tokens.total

    def lengths_json(self) -> dict[str, Any] | None:
        """What is said of rows that differ; None if they do not."""
        return None if self.row is not None else self.rows.summary.to_json()

    def flops(self, spec: ModelSpec) -> tuple[int, int]:
        """FLOPs of all rows' (prefill, decode): those of a token are linear in the tokens that it attends to."""
        head, alone = prefill_flops(spec, 0), decode_flops(spec, 0)
        each = decode_flops(spec, 1) - alone
        decode = 0

        def read(tokens: int) -> int:
            return tokens * (alone - head) + each * tokens * (tokens + 1) // 2

        # What rows share is read once at least.
        prefill = sum(map(read, self.prefixes.values()))
        for row, count in self.rows.kinds.items():
            steps = row.new_tokens - 1
            prefill += count * (head + read(row.prompt_tokens) - read(row.shared_tokens))
            decode += count * (steps * alone + each * (past_tokens(row) + steps))
        return prefill, decode

    @property
    def prefixes(self) -> dict[int, int]:
        """The tokens of every prefix that rows share, by its number."""
        return {row.prefix: row.shared_tokens for row in self.rows.kinds if row.prefix}

    def under(self, policy: Policy) -> "Workload":
        """What there is to time under a policy, which may not let rows share anything."""
        return self if policy.shares_prefixes else Workload(self.rows.alone)

    def past_tokens(self) -> int:
        """Records of their own that rows find in one layer's caches in all decode passes together."""
        return sum(
            count * (past_tokens(row) - (row.new_tokens - 1) * row.shared_tokens)
            for row, count in self.rows.kinds.items()
        )

    def rounds(self, places: int) -> int:
        """How often a block of so many places is filled with rows that are alike: they begin and end together."""
        return -(-len(self.rows) // places)

    def least_passes(self, places: int) -> int:
        """Passes that a block of so many places takes at least: in each one a place gives one token."""
        return max(self.rows.summary.new_tokens.most, -(-self.generated_tokens // places))


def past_tokens(row: RowLengths) -> int:
    """Records that a row's decode passes together find in one layer's cache."""
    steps = row.new_tokens - 1
    return steps * row.prompt_tokens + steps * (steps - 1) // 2


def workload_of(arguments: Arguments) -> Workload:
    """The rows of a benchmark; raises what `read_lengths` raises, and `PromptError` for more than can be there."""
    if arguments.lengths is not None:
        rows = read_lengths(arguments.lengths)
        if len(rows) > MOST_ROWS:
            raise PromptError(f"{arguments.lengths}: {len(rows)} rows: a benchmark has at most {MOST_ROWS}")
        return Workload(rows)
    alike = arguments.rows, arguments.prompt_len, arguments.gen_len
    assert None not in alike
    return Workload.alike(*alike)  # type: ignore[arg-type]


def random_prompts(workload: Workload, vocabulary: int, seed: int) -> list[Prompt]:
    """A prompt of random tokens for every row; it says for itself how many new ones it may have, where rows differ."""
    tokens = np.random.default_rng(seed).integers(0, vocabulary, workload.prompt_tokens).tolist()
    prompts, first, begun = [], 0, dict[int, list[int]]()
    for row in workload.rows:
        settings = None if workload.row is not None else {"max_new_tokens": row.new_tokens}
        ids = tokens[first : first + row.prompt_tokens]
        if row.prefix:
            ids[: row.shared_tokens] = begun.setdefault(row.prefix, ids[: row.shared_tokens])
        prompts.append(Prompt(token_ids=tuple(ids), settings=settings))
        first += row.prompt_tokens
    return prompts
