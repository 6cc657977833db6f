"""What makes two runs one job: the input, the model, the settings, the arithmetic; it knows no journal."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from threadpoolctl import threadpool_info

from flexref.backend.protocol import Backend
from flexref.errors import StorageError
from flexref.files import open_regular
from flexref.storage.random_weights import RandomFile
from flexref.storage.trailer import check_trailer
from flexref.storage.weightfile import WeightFile
from flexref.version import __version__

LONGEST_VALUE = 60
"""Letters of a value that a difference shows."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything on which a byte of the answers may depend, as JSON values by name. No paths: files may be moved.

    input: its lines, bytes and digest. model: its name and what vouches for its bytes (`model_facts`). settings: every
    setting that can change a token or a byte of an answer. arithmetic: what computes (`arithmetic_facts`).
    """

    input: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    arithmetic: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Identity":
        """From what `as_json` gave."""
        return cls(**{part: dict(values.get(part, {})) for part in cls.__slots__})

    def as_json(self) -> dict[str, Any]:
        """As an object for JSON, as it is when it was written and read again."""
        values: dict[str, Any] = {part: dict(getattr(self, part)) for part in self.__slots__}
        again: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
        return again

    def differences(self, begun: "Identity", *, arithmetic: bool = True) -> list[str]:
        """What is not as it was when the job was `begun`, in words, one for each; `arithmetic`: that, too."""
        parts = [part for part in self.__slots__ if arithmetic or part != "arithmetic"]
        return [words for part in parts for words in _differences(part, getattr(begun, part), getattr(self, part))]


def _differences(part: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    # settings are each of their own; of the rest it is plain whose they are
    called = {"settings": "setting", "arithmetic": "arithmetic,"}.get(part, f"the {part}'s")
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield f"{called} {name}: the job was begun with {_shown(old)}, now it is {_shown(new)}"


def _shown(value: Any) -> str:
    words = "none" if value is None else str(value)
    return words if len(words) <= LONGEST_VALUE else f"{words[:LONGEST_VALUE]}..."


def model_facts(file: WeightFile) -> dict[str, Any]:
    """What tells one model from another: the checksum of its metadata vouches for the checksums of all tensors.

    Raises `StorageError` or `WeightFileError` if the file cannot be read again.
    """
    facts: dict[str, Any] = {"name": file.spec.name, "scheme": file.scheme, "dtype": file.dtype}
    if isinstance(file, RandomFile):
        return facts | {"seed": file.seed, "spec": asdict(file.spec), "group_size": file.group_size}
    try:
        with open_regular(file.path) as opened:
            trailer = check_trailer(opened.fileno(), file.path)
    except OSError as error:
        raise StorageError(f"cannot read {file.path}: {error.strerror or error}") from error
    return facts | {"checksum": f"{trailer.metadata_checksum:016x}"}


def arithmetic_facts(backend: Backend) -> dict[str, Any]:
    """What computes, as far as it may change bits: the port's devices and libraries, and flexref itself.

    Where no device computes it is the host's processor, with the kernels that its BLAS chose for it.
    """
    described = backend.describe()
    facts = {
        "backend": backend.name,
        "devices": list(described.devices),
        "flexref": __version__,
        **{f"version of {library}": version for library, version in sorted(described.versions.items())},
    }
    if not described.devices:
        facts |= {"processor": platform.machine(), "BLAS kernels": numpy_kernels(threadpool_info())}
    return facts


def numpy_kernels(pools: Sequence[Mapping[str, Any]]) -> str:
    """The kernels of numpy's own BLAS, of all thread pools of this process (`threadpoolctl.threadpool_info`).

    scipy brings one, too, which is there only once somebody has planned, say. Where numpy brings none it uses the
    system's, which is everybody's.
    """
    libraries = [found for found in pools if found["user_api"] == "blas"]
    own = [found for found in libraries if Path(found["filepath"]).parent.name == "numpy.libs"]
    kernels = {f"{found['internal_api']} {found['version']} {found.get('architecture')}" for found in own or libraries}
    return ", ".join(sorted(kernels))
