"""What a model may be called: a weight file, the built-in one, or a published size; it opens nothing."""

from pathlib import Path

from flexref.architecture.published import SIZES, size_named
from flexref.errors import StorageError, UnknownName

DEMO = "demo"
"""What the built-in model is called wherever a weight file may be named."""


def demo_file() -> Path:
    """Where the built-in model lies, if this installation has it."""
    return Path(__file__).parents[1] / "data" / "demo.h5"


def called(name: str | Path) -> str:
    """What a model is called that `name` means: `demo`, or its file's name without the suffix."""
    return DEMO if str(name) == DEMO else Path(name).stem


def resolve(name: str | Path) -> str:
    """The path that `name` means: the built-in model for `demo`, else the file; `StorageError` if it is missing."""
    path = demo_file() if str(name) == DEMO else Path(name)
    if path.is_file():
        return str(path)
    if str(name) == DEMO:
        raise StorageError(f"the built-in model is missing from this installation: no file {path}")
    raise StorageError(f"{path} is not a file" if path.exists() else f"no such weight file: {path}")


def check_model(name: str) -> None:
    """`UnknownName` if `name` is neither a file, the built-in model, nor a published size."""
    if name != DEMO and not Path(name).exists() and size_named(name) is None:
        raise UnknownName(f"{name!r} is neither a weight file nor the size of a model; sizes: {', '.join(SIZES)}")
