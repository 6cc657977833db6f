"""What a benchmark is asked to do, by names that are those of the command's options, and the named suites of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flexref.errors import PolicyError
from flexref.files import read_object
from flexref.storage.schema import BITS
from flexref.units import is_integer, is_number

SUITES_FILE = Path(__file__).parents[1] / "data" / "suites.json"

REPEAT_MOST = 1000


@dataclass(frozen=True, slots=True)
class Arguments:
    """One benchmark, complete; fields are named like options. `model` is a size of `SIZES` or a weight file.

    `percent` or `policy` (a file) say where things lie, or it is chosen from the budgets for `machine` (a file or a
    known one; this one, if there is none); None stands for whatever the policy says, or would choose. Lengths are in
    tokens.
    """

    model: str
    random_weights: bool = False
    dtype: str = "float16"
    quantize_weights: str | None = None
    prompt_len: int = 512
    gen_len: int = 32
    rows: int = 8
    rows_per_group: int | None = None
    groups: int | None = None
    percent: tuple[float, ...] | None = None
    policy: str | None = None
    machine: str | None = None
    quantize_cache: bool = False
    attention_on: str | None = None
    overlap: bool | None = None
    device_mem_gib: float | None = None
    host_mem_gib: float | None = None
    disk_dir: str | None = None
    backend: str = "numpy"
    repeat: int = 1
    seed: int = 0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> "Arguments":
        """The benchmark that names and values describe; `PolicyError` says what is wrong in `where`."""
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise PolicyError(f"{where}: unknown field {unknown[0]!r}")
        if "model" not in values:
            raise PolicyError(f"{where}: lacks the field 'model'")
        for name, value in values.items():
            if value is not None or name in REQUIRED:
                _check(where, name, value)
        if values.get("percent") is not None:
            values = {**values, "percent": tuple(values["percent"])}
        made = cls(**values)
        if made.percent is not None and made.policy is not None:
            raise PolicyError(f"{where}: percent and policy exclude each other")
        return made

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


INTEGERS = {"prompt_len": 1, "gen_len": 1, "rows": 1, "rows_per_group": 1, "groups": 1, "repeat": 1, "seed": 0}
"""Whole numbers, and the least that each may be."""

CHOICES = {
    "dtype": ("float16", "float32"),
    "quantize_weights": tuple(BITS),
    "attention_on": ("device", "host"),
}
TEXTS = ("model", "policy", "machine", "disk_dir", "backend")
SWITCHES = ("random_weights", "quantize_cache", "overlap")
NUMBERS = ("device_mem_gib", "host_mem_gib")
REQUIRED = frozenset(entry.name for entry in fields(Arguments)) - {
    "quantize_weights", "rows_per_group", "groups", "percent", "policy", "machine", "attention_on", "overlap",
    "device_mem_gib", "host_mem_gib", "disk_dir",
}  # fmt: skip
"""Fields that have a value whatever happens: None says nothing for them."""


def _check(where: str, name: str, value: object) -> None:
    """`PolicyError` unless `value` is what the field `name` needs."""
    if name in INTEGERS:
        needed = f"a whole number of at least {INTEGERS[name]}"
        right = is_integer(value) and value >= INTEGERS[name]
    elif name in CHOICES:
        needed, right = f"one of {', '.join(CHOICES[name])}", value in CHOICES[name]
    elif name in TEXTS:
        needed, right = "text", isinstance(value, str) and value != ""
    elif name in SWITCHES:
        needed, right = "true or false", isinstance(value, bool)
    elif name in NUMBERS:
        needed, right = "a number", is_number(value)
    else:
        items = value if isinstance(value, list | tuple) else ()
        needed = "six numbers (weights, cache, activations on device and host)"
        right = len(items) == 6 and all(is_number(item) for item in items)
    if not right:
        raise PolicyError(f"{where}: {name} must be {needed}, found {value!r}")


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
