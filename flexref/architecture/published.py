"""Models that are known by name: every published OPT size, and one that is small enough to try things with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flexref.architecture.spec import ModelSpec
from flexref.errors import CheckpointError


def _published(name: str, layers: int, width: int, heads: int, **changes: Any) -> ModelSpec:
    spec = ModelSpec(name, 50272, 2048, width, width, layers, heads, 4 * width)
    return replace(spec, **changes)


PUBLISHED: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _published("opt-125m", 12, 768, 12),
        _published("opt-350m", 24, 1024, 16, embed_width=512, pre_norm=False, final_norm=False),
        _published("opt-1.3b", 24, 2048, 32),
        _published("opt-2.7b", 32, 2560, 32),
        _published("opt-6.7b", 32, 4096, 32),
        _published("opt-13b", 40, 5120, 40),
        _published("opt-30b", 48, 7168, 56),
        _published("opt-66b", 64, 9216, 72),
        _published("opt-175b", 96, 12288, 96),
    )
}
"""Every published OPT size (Zhang et al. 2022, table 1; 350m as released); OPT-IML shares the shapes of its base."""


def published(name: str) -> ModelSpec:
    """The published size `name`, with or without `opt-` and an organization before it; `CheckpointError` if unknown."""
    key = name.lower().rsplit("/", 1)[-1]
    key = key if key.startswith("opt-") else f"opt-{key}"
    if key not in PUBLISHED:
        raise CheckpointError(f"unknown model size {name!r}; known: {', '.join(PUBLISHED)}")
    return PUBLISHED[key]


TINY = ModelSpec("tiny", 512, 256, 128, 128, 4, 4, 512)
"""A model for trying the benchmark itself, anywhere and in seconds."""

SIZES: Mapping[str, ModelSpec] = {TINY.name: TINY, **PUBLISHED}
"""Models that need no file: their weights are random."""


def size_named(name: str) -> ModelSpec | None:
    """The model of a size such as `6.7b`, `OPT-6.7B` or `tiny`; None if that is no size."""
    key = name.lower()
    return SIZES.get(key) or SIZES.get(f"opt-{key}")
