"""What a benchmark is asked to do, by names that are those of the command's options, and the named suites of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from flexref.bench.repeats import AUTO
from flexref.errors import PolicyError
from flexref.files import read_object
from flexref.json_types.containers import ListOf
from flexref.json_types.objects import object_of
from flexref.json_types.values import Either, Number, OneOf, Text, Whole
from flexref.policy import PLACES
from flexref.storage.schema import BITS, DTYPES

SUITES_FILE = Path(__file__).parents[1] / "data" / "suites.json"


FILLED = Text(filled=True)

PERCENT = ListOf(Number(), 6, 6, "six numbers (weights, cache, activations on device and host)")


RUNS = Either((Whole(1), OneOf((AUTO,))))

BESIDE = ("repeat", "check_rows", "breakdown")
"""Fields that make no other job: how often it runs, and what is found out about it afterwards."""

ALIKE = ("prompt_len", "gen_len", "rows")
"""Fields of rows that are alike, whose place a file of lengths takes."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """One benchmark, complete; fields are named like options. `model` is a size of `SIZES` or a weight file.

    `percent` or `policy` (a file) say where things lie, or it is chosen from the budgets for `machine` (a file or a
    known one; this one, if there is none); None stands for whatever the policy says, or would choose. Lengths are in
    tokens; with `lengths` (a file, see `planner.lengths_file`) rows differ.
    """

    model: Annotated[str, FILLED, "A size, whose weights are random, or a weight file."]
    random_weights: Annotated[bool, "Random weights in place of a file's own."] = False
    dtype: Annotated[str, OneOf(DTYPES), "The type of random weights."] = "float16"
    quantize_weights: Annotated[str | None, OneOf(tuple(BITS)), "How random weights are stored in groups."] = None
    prompt_len: Annotated[int | None, Whole(1), "Tokens of every prompt; null: see lengths."] = 512
    gen_len: Annotated[int | None, Whole(1), "New tokens of every row; null: see lengths."] = 32
    rows: Annotated[int | None, Whole(1), "Rows in all; null: see lengths."] = 8
    rows_per_group: Annotated[int | None, Whole(1), "Rows that are computed together."] = None
    groups: Annotated[int | None, Whole(1), "Groups of a block."] = None
    percent: Annotated[tuple[float, ...] | None, PERCENT, "Weights, cache, activations on device and host."] = None
    policy: Annotated[str | None, FILLED, "A policy's file, in place of percent."] = None
    machine: Annotated[str | None, FILLED, "A machine's file or a known one, for which the policy is chosen."] = None
    quantize_cache: Annotated[bool, "Whether the cache is stored in 4-bit groups."] = False
    attention_on: Annotated[str | None, OneOf(PLACES), "Where decode attention is computed."] = None
    host_attention_percent: Annotated[
        float | None, Number(0, 100), "Of the rows off the device, so many are attended to on the host."
    ] = None
    overlap: Annotated[bool | None, "Whether copies go on while the device computes."] = None
    row_invariant: Annotated[bool | None, "Whether a row's results have bits of their own."] = None
    share_prefixes: Annotated[bool | None, "Whether the beginnings that prompts share are read and kept once."] = None
    read_ahead_gib: Annotated[float | None, "Host memory for weights that are read from disk early, in GiB."] = None
    graphs: Annotated[bool, "Whether what comes again with every token is recorded and replayed."] = True
    device_mem_gib: Annotated[float | None, "Budget of the device, in GiB."] = None
    host_mem_gib: Annotated[float | None, "Budget of the host, in GiB."] = None
    disk_dir: Annotated[str | None, FILLED, "Where cache and activations are spilled to."] = None
    backend: Annotated[str, FILLED, "The port that it runs on."] = "numpy"
    repeat: Annotated[int | str, RUNS, "Runs; auto: until the interval of their mean is narrow enough."] = 1
    seed: Annotated[int, Whole(0), "Of random weights and prompts."] = 0
    lengths: Annotated[str | None, FILLED, "A file of lengths, in place of equal rows."] = None
    link_gb_per_s: Annotated[float | None, Number(1e-3), "The rate of the links, if they are slowed, in GB/s."] = None
    breakdown: Annotated[bool, "Whether it is found out what the seconds are made of."] = False
    check_rows: Annotated[int | None, Whole(0), "Rows whose tokens are checked; null: as many as take a while."] = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> "Arguments":
        """The benchmark that names and values describe; `PolicyError` says what is wrong in `where`."""
        if "model" not in values:
            raise PolicyError(f"{where}: lacks the field 'model'")
        object_of(cls).read_members(f"{where}: ", values, PolicyError)
        if values.get("percent") is not None:
            values = {**values, "percent": tuple(values["percent"])}
        if values.get("lengths") is not None:
            for name in ALIKE:
                if values.get(name) is not None:
                    raise PolicyError(f"{where}: {name} and lengths exclude each other")
            values = {**values, **dict.fromkeys(ALIKE)}
        made = cls(**values)
        for name in ALIKE:
            if made.lengths is None and getattr(made, name) is None:
                raise PolicyError(f"{where}: {name} must be {Whole(1).needed}, found None")
        if made.percent is not None and made.policy is not None:
            raise PolicyError(f"{where}: percent and policy exclude each other")
        return made

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Suite:
    """Some benchmarks under one name: what they show, and the fields of each as the file has them."""

    name: str
    about: str
    runs: tuple[Mapping[str, Any], ...]


def read_suites(path: Path = SUITES_FILE) -> dict[str, Suite]:
    """Every suite of a file by its name; `PolicyError` in one line if anything in it is not what it must be."""
    values = read_object(path, PolicyError, needed="must hold a JSON object of suites")
    return {name: _suite(f"{path}, suite {name!r}", name, value) for name, value in values.items()}


def _suite(where: str, name: str, value: object) -> Suite:
    if not isinstance(value, dict) or set(value) != {"about", "runs"}:
        raise PolicyError(f"{where}: must be an object with 'about' and 'runs'")
    about, runs = value["about"], value["runs"]
    if not isinstance(about, str) or not isinstance(runs, list) or not runs:
        raise PolicyError(f"{where}: needed text as 'about' and a list of at least one object as 'runs'")
    for number, run in enumerate(runs, start=1):
        if not isinstance(run, dict):
            raise PolicyError(f"{where}, run {number}: must be an object, found {type(run).__name__}")
        Arguments.from_mapping(run, f"{where}, run {number}")
    return Suite(name, about, tuple(runs))
