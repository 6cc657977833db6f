"""Progress on stderr, where that is a terminal: a bar for work counted in bytes, a line for what is not counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flexref.engine.events import Event


class EventDisplay:
    """Shows what a session tells (an `engine.events.OnEvent`): notices as lines on stderr, loaded bytes on a bar."""

    def __init__(self) -> None:
        self._on_loaded: Callable[[int], None] | None = None

    def __call__(self, event: "Event") -> None:
        from flexref.engine.events import Notice

        if isinstance(event, Notice):
            click.echo(event.text, err=True)
        elif self._on_loaded is not None:
            self._on_loaded(event.nbytes)

    @contextmanager
    def loading(self, on_loaded: Callable[[int], None]) -> Iterator[None]:
        """Meanwhile `on_loaded` is told how many more bytes of weights have come."""
        self._on_loaded = on_loaded
        try:
            yield
        finally:
            self._on_loaded = None


@contextmanager
def byte_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of bytes done and bytes in all that moves a bar; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def working(description: str) -> Iterator[None]:
    """A line that says what is being done and for how long; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(description, total=None)
        yield


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` things; what is yielded is told how many more of them are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
