"""The mutants that compute the same as the port: listed in equivalent.json by what they change, with the reason."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

LISTED = Path(__file__).with_name("equivalent.json")


def equivalent(port: str, path: Path = LISTED) -> Mapping[str, str]:
    """Key of a mutant -> why no contract can tell it from the port."""
    groups = json.loads(path.read_text(encoding="utf-8")).get(port, [])
    return {key: group["reason"] for group in groups for key in group["mutants"]}


def stale(listed: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Listed mutants that are none: their line has changed since, and so may the reason."""
    known = set(keys)
    return [key for key in listed if key not in known]
