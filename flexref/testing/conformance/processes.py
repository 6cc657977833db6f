"""Runs a piece of work in a process of its own, so that its crash, its exit or its hanging is told; it knows no port.

Processes are forked by a server that has loaded what all of them need, and what a port's package names for it, but no
port: they begin at once, and none inherits a device or a thread that another has opened.
"""

import faulthandler
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flexref.errors import described
from flexref.testing.conformance.black_box import BlackBox, BoxNotes

PRELOADED = ["flexref.testing.conformance.clause_run"]
"""Loaded once by the server, with all that this imports."""

END_S = 10.0
"""A process that has told its result ends within this time, or hangs."""

LOOK_S = 1.0
"""A process that says nothing is looked at so often."""

CRASH = "Fatal Python error"
"""How faulthandler begins, which names the innermost place first."""

LAST_LINE = 200
"""Letters of the last line of a dead process that are told."""

Telling = Callable[[Any], None]

Work = Callable[..., Any]
"""`work(box, tell, *arguments)`: what it returns is the result, `tell` sends something on the way."""

Hangs = Callable[[int], str | None]
"""How the group of processes of this number hangs, None as long as it does not; asked every LOOK_S of silence."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended: with its `result`, or `how` it died, in words, and what it noted until then.

    `told`: what it sent last on the way, None if nothing.
    """

    result: Any = None
    how: str | None = None
    kind: str = "done"
    told: Any = None
    notes: BoxNotes | None = None
    seconds: float = 0.0


def preload(modules: Iterable[str]) -> None:
    """Let the server load these too, if it has not begun yet: what opens no device, and takes long to load."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED, *modules])


def run_apart(work: Work, arguments: tuple[Any, ...], limit_s: float, hangs: Hangs = lambda group: None) -> ProcessEnd:
    """Run `work` in a process, killed after `limit_s` or once it `hangs`. What it raises is a bug of ours, raised here.

    `kind` of the end is `done`, `crashed` (a signal), `exited` or `hung`.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    began = time.monotonic()
    with TemporaryDirectory(prefix="flexref-conformance-") as folder:
        log, box = f"{folder}/log", f"{folder}/box"
        process = context.Process(target=_begin, args=(sender, log, box, work, arguments), daemon=True)
        process.start()
        sender.close()
        try:
            answer, told, late = _answer(receiver, process, limit_s, hangs)
            process.join(0 if late else END_S)
            ended = not process.is_alive()
        finally:
            with suppress(ProcessLookupError):  # it has no group yet, or nobody is left of it
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
            receiver.close()
        seconds = time.monotonic() - began
        notes = BoxNotes(box) if os.path.exists(box) else None
        if answer is not None and not answer[0]:
            raise RuntimeError(f"the conformance run itself failed: {answer[1]}")
        if answer is not None and ended:
            return ProcessEnd(answer[1], told=told, notes=notes, seconds=seconds)
        kind, how = _death(process.exitcode or 0, answer is not None, late)
        return ProcessEnd(None, f"{how}{_last_line(log)}", kind, told, notes, seconds)


def _begin(sender: Connection, log: str, box: str, work: Work, arguments: tuple[Any, ...]) -> None:
    """The process: what it prints goes to its log, and a crash leaves no core.

    What it starts is of one group with it, and ends with it.
    """
    os.setsid()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    try:
        result = work(BlackBox(box), lambda told: sender.send((None, told)), *arguments)
    except Exception as error:
        sender.send((False, described(error)))
    else:
        sender.send((True, result))
    sender.close()


def _answer(
    receiver: Connection, process: BaseProcess, limit_s: float, hangs: Hangs
) -> tuple[tuple[bool, Any] | None, Any, str | None]:
    """(the answer, what was told before it, how the process hangs; None if it ended or answered in time).

    Its sentinel is waited for too: processes that it has started may still hold the other end of `receiver`.
    """
    told, until = None, time.monotonic() + limit_s
    while (left := until - time.monotonic()) > 0:
        ready = wait([receiver, process.sentinel], min(left, LOOK_S))
        if not ready:
            how = hangs(process.pid or 0)
            if how is not None:
                return None, told, how
        elif receiver not in ready:
            return None, told, None
        else:
            try:
                kind, content = receiver.recv()
            except (EOFError, OSError):  # it has ended, perhaps in the middle of what it told
                return None, told, None
            if kind is not None:
                return (kind, content), told, None
            told = content
    return None, told, f"it did not end within {limit_s:g} s"


def _death(code: int, answered: bool, late: str | None) -> tuple[str, str]:
    """(kind, how) of a process that gave no result, or did not end after it had."""
    if answered:
        return "hung", f"the process did not end within {END_S:g} s after `close`"
    if late is not None:
        return "hung", late
    if code < 0:
        return "crashed", f"the process died of {signal.Signals(-code).name}"
    return "exited", f"the process left with exit code {code}"


def _last_line(log: str) -> str:
    """What a dead process said where it died: the innermost place of a crash, else its last line, as of a traceback."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # it died before it began
        return ""
    crash = next((number for number, line in enumerate(lines) if line.startswith(CRASH)), len(lines))
    places = [line.strip() for line in lines[crash:] if line.startswith('  File "')]
    said = places[0] if places else next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {said[:LAST_LINE]}" if said else ""
