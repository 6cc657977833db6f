"""The schema of what `flexref conformance` prints with `--json`."""

from flexref.json_types.objects import object_of
from flexref.json_types.values import JsonType
from flexref.testing.conformance.results import ConformanceResult


def conformance() -> JsonType:
    """The result of one port."""
    return object_of(ConformanceResult)
