"""Runs the commands of a trial as processes and tells how they ended; it does not know what is right.

A command that is not `fresh` is a copy (fork) of this process, which has imported everything: twenty times as many fit
into a minute, and each still has signals, limits, streams and memory of its own.
"""

import faulthandler
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from hostile_run.rights import become_limited
from hostile_run.trial import CACHE, HUNG, OUT, TEMPORARY, Meddle, Ran, Trial

START = (
    "import os, sys; from {module} import {function} as command; os.close({ready}); "
    "sys.argv[0] = 'flexref'; sys.exit(command())"
)
"""A process of its own tells when it is ours: before that, what an interrupt does is Python's affair."""

ADDRESS_SPACE = 12 << 30
"""Bytes that any command may ask for: one that runs wild must not take the machine."""

POLL_S = 0.001
SHOWN_BYTES = 1 << 24
"""Kept of what a command prints."""


class Runner:
    """Runs `command`, the console entry point as (module, function); ends what takes longer than `limit_s`."""

    def __init__(self, command: tuple[str, str], limit_s: float) -> None:
        self._module, self._function = command
        self._limit_s = limit_s

    def run(self, trial: Trial) -> list[Ran]:
        """The commands of `trial`, until one does not end with 0."""
        ran: list[Ran] = []
        with SmallDisk(trial):
            for number, arguments in enumerate(trial.commands, start=1):
                ran.append(self._run(trial, arguments, last=number == len(trial.commands)))
                if ran[-1].code:
                    break
        return ran

    def _run(self, trial: Trial, arguments: list[str], *, last: bool) -> Ran:
        started = time.monotonic()
        process, pipes = self._started(trial, arguments)
        shown: dict[int, bytearray] = {pipe: bytearray() for pipe in pipes}
        status, usage = self._awaited(process, list(trial.meddling) if last else [], shown)
        seconds = time.monotonic() - started
        code = HUNG if status is None else os.waitstatus_to_exitcode(status)
        for pipe in pipes:
            os.close(pipe)
        return Ran(arguments, code, *map(bytes, shown.values()), seconds, usage.ru_maxrss << 10)

    def _awaited(
        self, process: int, steps: list[tuple[float, Meddle]], shown: dict[int, bytearray]
    ) -> tuple[int | None, resource.struct_rusage]:
        """(wait status, None if it was ended for its time; what it used), with `steps` taken on the way."""
        started, pipes = time.monotonic(), list(shown)
        while True:
            ended, status, usage = os.wait4(process, os.WNOHANG)
            now = time.monotonic() - started
            if not ended and now > self._limit_s:
                os.kill(process, signal.SIGKILL)
                (_, _, usage), status = os.wait4(process, 0), None
                ended = process
            _drain(pipes, shown, 0 if ended else POLL_S if steps else min(POLL_S * (1 + now * 20), 0.02))
            if ended:
                return status, usage
            while steps and steps[0][0] <= now:
                steps.pop(0)[1](process)

    def _started(self, trial: Trial, arguments: list[str]) -> tuple[int, tuple[int, int]]:
        """(process, pipes from its stdout and stderr), when it has become the command."""
        ready, tell = os.pipe()
        (said, say), (complained, complain) = os.pipe(), os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        process = os.fork()
        if process == 0:
            for pipe in (ready, said, complained):
                os.close(pipe)
            _become(self, trial, arguments, (say, complain, tell))
        for pipe in (tell, say, complain):
            os.close(pipe)
        os.read(ready, 1)  # it is ours, or it has ended
        os.close(ready)
        return process, (said, complained)

    def call(self, trial: Trial, arguments: list[str], ready: int) -> None:
        """The command itself, in a process that is already its own."""
        if trial.fresh:
            os.set_inheritable(ready, True)
            code = START.format(module=self._module, function=self._function, ready=ready)
            python = [sys.executable, "-c", code, *arguments]
            os.execve(sys.executable, python, os.environ)
        os.close(ready)
        sys.argv = ["flexref", *arguments]
        module = __import__(self._module, fromlist=[self._function])
        sys.exit(getattr(module, self._function)())


def _become(runner: Runner, trial: Trial, arguments: list[str], descriptors: tuple[int, int, int]) -> None:
    """Turn this copy of the process into a command: it never returns."""
    code = os.EX_SOFTWARE
    faulthandler.disable()  # whoever tests this has it write elsewhere
    try:
        _prepare(trial, *descriptors[:2])
        runner.call(trial, arguments, descriptors[2])
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # As the interpreter ends, but without what the process that this is a copy of wants done at its own end.
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except BaseException:
            code = 120
            traceback.print_exc()
        finally:  # even where complaints have nowhere to go: above is what cleans up after all cases
            os._exit(code)


def _prepare(trial: Trial, said: int, complained: int) -> None:
    out = trial.folder / OUT
    os.setsid()
    os.chdir(out)
    own = {"TMPDIR": str(trial.folder / TEMPORARY), "FLEXREF_CACHE_DIR": str(trial.folder / CACHE)}
    os.environ.update({**own, **trial.environment})
    tempfile.tempdir = None
    _open_as(0, _input_of(trial))
    _open_as(1, _stream(trial.stdout, said))
    _open_as(2, _stream(trial.stderr, complained))
    os.close(said)
    os.close(complained)
    sys.stdin, sys.stdout, sys.stderr = (_opened(number) for number in range(3))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if trial.user is not None:
        become_limited(trial.user)
    for name, value in {"RLIMIT_AS": ADDRESS_SPACE, "RLIMIT_CORE": 0, **trial.limits}.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def _open_as(number: int, descriptor: int | None) -> None:
    if descriptor is None:
        os.close(number)
    else:
        os.dup2(descriptor, number)


def _opened(number: int) -> Any:
    """A standard stream as the interpreter opens it: None where it is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    errors = "backslashreplace" if number == 2 else "strict"
    buffering = 1 if number == 2 else -1  # complaints go out line by line
    return open(number, "w" if number else "r", buffering, encoding="utf-8", errors=errors, closefd=False)


def _input_of(trial: Trial) -> int:
    reader, writer = os.pipe()
    if len(trial.stdin) > 1 << 15:  # more than a pipe holds: nobody would empty it
        path = trial.folder / "stdin"
        path.write_bytes(trial.stdin)
        os.close(reader)
        reader = os.open(path, os.O_RDONLY)
        path.unlink()
    else:
        os.write(writer, trial.stdin)
    os.close(writer)
    return reader


def _stream(what: str, file: int) -> int | None:
    if what == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if what == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return None if what == "closed" else file


def _drain(pipes: list[int], shown: dict[int, bytearray], wait_s: float) -> None:
    """Read what there is in `pipes`, and wait for it for a while; one that has ended leaves the list."""
    while pipes and (readable := select.select(pipes, [], [], wait_s)[0]):
        wait_s = 0
        for pipe in readable:
            piece = os.read(pipe, 1 << 16)
            if len(shown[pipe]) < SHOWN_BYTES:
                shown[pipe] += piece
            if not piece:
                pipes.remove(pipe)
    if not pipes:
        time.sleep(wait_s)


class SmallDisk:
    """A context in which the working folder of a trial is a disk of `disk_bytes`, if the trial asks for one."""

    def __init__(self, trial: Trial) -> None:
        self._bytes, self._place = trial.disk_bytes, trial.folder / OUT

    def __enter__(self) -> None:
        if self._bytes is not None:
            options = ["-t", "tmpfs", "-o", f"size={self._bytes}", "tmpfs"]
            subprocess.run(["mount", *options, str(self._place)], check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        if self._bytes is None:
            return
        left = {path.name: path.read_bytes() for path in self._place.iterdir() if path.is_file()}
        subprocess.run(["umount", str(self._place)], check=True, capture_output=True)
        for name, content in left.items():  # what lay on the disk is judged where the disk was
            Path(self._place, name).write_bytes(content)
