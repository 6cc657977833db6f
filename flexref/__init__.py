"""The library's front door: the names that users need, each loaded on its first use; it computes nothing."""

import logging
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flexref.errors import FlexrefError

if TYPE_CHECKING:
    from flexref.batch_job.library import batch
    from flexref.engine.engine import Engine
    from flexref.engine.request import Request, RowRequest
    from flexref.engine.scoring import Listener, ScoredRow
    from flexref.loading import load
    from flexref.policy import Policy, Shares
    from flexref.sampling.settings import SamplingSettings
    from flexref.version import __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who uses a library says where its logs go

__all__ = [
    "Engine",
    "FlexrefError",
    "Listener",
    "Policy",
    "Request",
    "RowRequest",
    "SamplingSettings",
    "ScoredRow",
    "Shares",
    "__version__",
    "batch",
    "load",
]

_HOMES = MappingProxyType(
    {
        "batch": "flexref.batch_job.library",
        "load": "flexref.loading",
        "Engine": "flexref.engine.engine",
        "Request": "flexref.engine.request",
        "RowRequest": "flexref.engine.request",
        "ScoredRow": "flexref.engine.scoring",
        "Listener": "flexref.engine.scoring",
        "Policy": "flexref.policy",
        "Shares": "flexref.policy",
        "SamplingSettings": "flexref.sampling.settings",
        "__version__": "flexref.version",
    }
)
"""Where the names live that are loaded on first use, so that `import flexref` is instant (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flexref' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
