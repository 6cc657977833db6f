"""Tells what is wrong with how a case went: exit codes, complaints, tokens, files; it runs nothing of a case itself."""

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexref.errors import FlexrefError
from flexref.storage.trailer import HDF5_SIGNATURE
from flexref.storage.weightfile import open_weight_file, verify
from hostile_run.trial import CACHE, HUNG, IN, MADE, OUT, TEMPORARY, Ran, Trial

READER_GONE = 141
UNHANDLED = re.compile(
    rb"Traceback \(most recent call last\)|Fatal Python error|Exception ignored|panicked at|Segmentation fault"
    rb"|\w+Warning: |terminate called|malloc|RUST_BACKTRACE"
)
NOT_OURS = re.compile(rb"^OpenBLAS error: Memory allocation|^Exception ignored in.*\nMemoryError\n", re.MULTILINE)
"""Without address space OpenBLAS ends the process, and Python waits for ever for a thread that cannot begin."""
USAGE_LINES = 16
"""A wrong call is told with click's three lines, after which what may be chosen is listed."""
NOTES = re.compile(
    r"skipped \d+ blank lines?$|ignored \d+ tensors|.* has no tokenizer: |this machine is measured|the measured machine"
    r"|.*; this machine is measured again$|.*; read again after [\d.]+ s$"
    r"|.*, [\d.]+ \w+ (so far|left)$|--- |\s*$"
)
"""Lines that may stand on stderr before a complaint: what a command has told of its work until then."""

LOGGED = "-v", "--verbose", "--log-level"
"""Options that ask for more lines on stderr."""

PICTURES = (b"\x89PNG", b"%PDF", b"<?xml")
HASHED_BYTES = 1 << 26
SHOWN_NAMES = 4

Seen = dict[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Before:
    """What lay where before the commands ran."""

    inputs: Seen
    outputs: Seen
    shelf: Seen


def seen(folder: Path) -> Seen:
    """Everything below `folder` by its path, with what it holds, links as links."""
    found: Seen = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = ""
        if stat.S_ISREG(status.st_mode) and status.st_size <= HASHED_BYTES:
            content = hashlib.blake2b(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), status.st_size, content)
    return found


def stamps(paths: list[Path]) -> Seen:
    """Size and time of change of files: much faster than what they hold."""
    return {str(path): (status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]}


def outcome_of(ran: list[Ran], trial: Trial) -> str:
    """How the last command ended, in one word."""
    code = ran[-1].code
    if code == 0:
        return "accepted"
    if code in (1, 2):
        return "limited" if trial.limits or trial.environment or trial.disk_bytes else "refused"
    return "killed" if code < 0 else "ended"


def faults(trial: Trial, ran: list[Ran], before: Before, most_bytes: int) -> list[str]:
    """Everything that is wrong, each in a line; nothing if all is as it should be."""
    found = [fault for command in ran for fault in _command_faults(trial, command, most_bytes)]
    found += list(_file_faults(trial, ran[-1].code, before))
    if ran[-1].code == 0:
        found += list(_token_faults(trial, ran))
    return found


def _command_faults(trial: Trial, command: Ran, most_bytes: int) -> Iterator[str]:
    name, code = command.arguments[0] if command.arguments else "flexref", command.code
    if "RLIMIT_AS" in trial.limits and NOT_OURS.search(command.stderr):
        return
    ended_by = {*trial.signals}
    if code == HUNG:
        yield f"{name} hangs: ended after {command.seconds:.0f} s"
    elif code < 0 and -code not in ended_by:
        yield f"{name} died of signal {-code}"
    elif code >= 0 and code not in {*trial.codes, *(128 + number for number in ended_by)}:
        yield f"{name} exits with {code}"
    for what, shown in (("stdout", command.stdout), ("stderr", command.stderr)):
        match = UNHANDLED.search(shown)
        if match:
            yield f"{name} shows {match[0].decode(errors='replace')!r} on {what}"
    if code in (1, 2) and trial.stderr == "file":
        yield from (f"{name} exits with {code}, {fault}" for fault in _complaint_faults(command))
    if command.peak_bytes > most_bytes:
        yield f"{name} took {command.peak_bytes >> 20} MiB of memory"


def _complaint_faults(command: Ran) -> Iterator[str]:
    """What is wrong with the complaint of a command that refuses."""
    lines = command.stderr.decode(errors="replace").splitlines()
    ours = [line for line in lines if line.startswith("flexref: ")]
    if command.arguments[:1] == ["lm-eval"] and not ours:  # the harness has complaints of its own
        if not (command.stdout or lines):
            yield "and says nothing"
    elif not lines:
        yield "and says nothing"
    elif not command.arguments:  # the help, which is long
        return
    elif not ours and command.code == 2 and lines[0].startswith(("Usage: ", "Error: ")):
        if len(lines) > USAGE_LINES:
            yield f"and its complaint has {len(lines)} lines"
    elif len(ours) != 1 or not lines[-1].startswith("flexref: "):
        yield f"and its complaint is not one line: {lines[-3:]}"
    elif ours[0] == "flexref: " or ours[0].endswith(": "):
        yield f"and its complaint is unfinished: {ours[0]}"
    else:
        logged = any(argument.startswith(LOGGED) for argument in command.arguments)
        odd = [line for line in lines[:-1] if not (logged or NOTES.match(line))]
        # What is written last, and cannot be, comes after the tables of the work that was done.
        if odd and not ours[0].startswith("flexref: cannot write "):
            yield f"and says beside its complaint: {odd[:3]}"
    if command.code == 2 and command.stdout:
        yield "but prints on stdout"


def _file_faults(trial: Trial, code: int, before: Before) -> Iterator[str]:
    if not trial.changes_inputs and seen(trial.folder / IN) != before.inputs:
        yield "an input was changed"
    if stamps([Path(path) for path in before.shelf]) != before.shelf:
        yield "something that every case reads was changed"
    could_act = code >= 0 or code == HUNG
    after, left = seen(trial.folder / OUT), []
    for name in sorted({*after, *before.outputs}):
        if name not in after:
            yield f"{name} is gone from the working folder"
        elif after[name] != before.outputs.get(name):
            if name in trial.outputs:
                yield from _output_faults(trial.folder / OUT / name, whole=code == 0 or not name.startswith("trace"))
            elif could_act or not name.endswith(".partial"):
                left.append(name)
    if left:
        yield f"left in the working folder: {left[:SHOWN_NAMES]}"
    if could_act:
        if left := sorted(seen(trial.folder / TEMPORARY)):
            yield f"left in the temporary folder: {left[:SHOWN_NAMES]}"
        yield from _cache_faults(trial.folder / CACHE)
    beside = {path.name for path in trial.folder.iterdir()} - {*MADE}
    if beside:
        yield f"left beside the folders of the case: {sorted(beside)}"


def _cache_faults(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            yield f"{path.name} was left in the cache"


def _output_faults(path: Path, *, whole: bool) -> Iterator[str]:
    """Whether a file that was written is whole; of a trace, which grows as the job goes, only its events must be."""
    with path.open("rb") as file:
        begins = file.read(8)
    if begins == HDF5_SIGNATURE:
        try:
            open_weight_file(path)
            damaged = verify(path)
        except FlexrefError as error:
            yield f"a weight file was written that is none: {error}"
        else:
            if damaged:
                yield f"a weight file was written that is damaged: {damaged}"
    elif begins[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            damaged_member = archive.testzip()
        if damaged_member is not None:
            yield f"{path.name} was written and its member {damaged_member} is damaged"
    elif not begins.startswith(PICTURES):
        try:
            content = path.read_bytes()
            json.loads(content if whole else (content.rstrip(b"]\n") or b"[") + b"]")
        except (ValueError, RecursionError) as error:
            yield f"{path.name} was written and is no JSON: {error}"


def tokens_of(shown: bytes) -> list[list[int]] | None:
    """The tokens that `generate --json` printed; None if it did not."""
    try:
        return [output["token_ids"] for output in json.loads(shown)["outputs"]]
    except (ValueError, KeyError, TypeError):
        return None


def _token_faults(trial: Trial, ran: list[Ran]) -> Iterator[str]:
    expected = tokens_of(ran[0].stdout) if trial.compare else trial.expected
    if trial.compare and expected is None:
        yield "the reference gave no tokens"
    elif expected is not None and tokens_of(ran[-1].stdout) != expected:
        yield f"wrong tokens: {tokens_of(ran[-1].stdout)}, not {expected}"
