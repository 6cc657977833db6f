"""The records of a journal as bytes, and bytes as records; it knows no file.

A record is one line: 16 hex digits of the XXH3-64 of what follows the space, a space, a JSON object, a line feed. So
that a torn or damaged record is known by itself, wherever it was cut. The checksum guards against damage, not against
someone who computes a fitting one.
"""

from typing import Any

import msgspec
import xxhash

from flexref.errors import BatchError

FORMAT = 1
"""Of the journal; what reads another one would misunderstand it."""

DIGEST_LETTERS = 16

OUT, ERR = "out", "err"
"""The files that are written from a journal, as its records call them."""


class JournalRecord(msgspec.Struct, frozen=True, tag_field="kind"):
    """A record of some kind; each kind says below what it vouches for."""


class HeaderRecord(JournalRecord, frozen=True, tag="header"):
    """What job this is, first in every journal; a later one replaces it. `lines`: of the input, blank ones included."""

    format: int
    lines: int
    expected: int
    identity: dict[str, Any]


class OpenedRecord(JournalRecord, frozen=True, tag="opened"):
    """Run number `run` of the job, from 1 on, holds the journal: the process `pid` of `host`.

    `errors`: where ERR lies, seen from the folder of OUT; None where there is none. `gone_bytes`: of what was written
    to the job's files up to here, by earlier runs too, what is not in them any more.
    """

    run: int
    pid: int
    host: str
    errors: str | None = None
    gone_bytes: int = 0


class AnsweredRecord(JournalRecord, frozen=True, tag="answer"):
    """The answer to line `number`; `hash` is the line's, in hex."""

    number: int
    hash: str
    failed: bool
    data: msgspec.Raw


class TokensRecord(JournalRecord, frozen=True, tag="tokens"):
    """The tokens that one choice of a line has so far; the latest record of a choice counts."""

    number: int
    choice: int
    tokens: list[int]


class LinesRecord(JournalRecord, frozen=True, tag="lines"):
    """Lines whose answers lie in OUT or ERR, and no longer here: bits for the lines from number `first` on.

    `done` and `failed`: bits, the lowest first; `hashes`: of the lines that are done, 8 bytes each, little-endian.
    """

    first: int
    done: bytes
    failed: bytes
    hashes: bytes


class MarkRecord(JournalRecord, frozen=True, tag="mark"):
    """All lines up to number `line` that belong into `file` are in it and synced: `bytes` bytes, with this XXH3-64."""

    file: str
    line: int
    bytes: int
    hash: str


class SyncedRecord(JournalRecord, frozen=True, tag="synced"):
    """The first `bytes` bytes of this journal are synced: a bad record among them is damage, and no torn end."""

    bytes: int


class NoteRecord(JournalRecord, frozen=True, tag="note"):
    """Something that a report tells: a state, an event, the begin or the end of a run."""

    note: str
    values: dict[str, Any]


class FinishedRecord(JournalRecord, frozen=True, tag="finished"):
    """Every line is answered, and OUT and ERR are whole and synced."""


AnyRecord = (
    HeaderRecord
    | OpenedRecord
    | AnsweredRecord
    | TokensRecord
    | LinesRecord
    | MarkRecord
    | SyncedRecord
    | NoteRecord
    | FinishedRecord
)

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def encoded(record: JournalRecord) -> bytes:
    """The record as a line, with its line feed. `TypeError` for values that JSON has no words for."""
    body = _ENCODER.encode(record)
    return b"%s %s\n" % (xxhash.xxh3_64_hexdigest(body).encode(), body)


def decoded(line: bytes, where: str) -> AnyRecord | None:
    """The record in a line with its line feed; None for a torn or damaged one.

    Raises `BatchError` for a whole record that this flexref does not know, `where` is its place in words.
    """
    body = line[DIGEST_LETTERS + 1 : -1]
    if not line.endswith(b"\n") or line[: DIGEST_LETTERS + 1] != xxhash.xxh3_64_hexdigest(body).encode() + b" ":
        return None
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise BatchError(f"{where}: a record that this flexref does not know: {error}") from error
