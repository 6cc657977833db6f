"""The last 64 bytes of a weight file, which vouch for its HDF5 metadata; it knows nothing of what the metadata says.

HDF5 libraries trust what they parse: damaged metadata can crash or hang them, or mislead them in silence. So the
trailer holds a checksum of everything before the first dataset, and it is checked by plain reads before HDF5 sees the
file. It lies after the end that HDF5 itself knows, where other programs neither look nor mind. It guards against
damage, not against someone who computes a fitting checksum.

Layout, little-endian: magic (8 bytes), version (4), zero (4), bytes of the whole file (8), bytes of metadata (8),
XXH3-64 of the metadata (8), zero (16), XXH3-64 of the 56 bytes before (8).
"""

import os
import struct
from dataclasses import dataclass

import xxhash

from flexref.errors import WeightFileError
from flexref.storage.schema import FORMAT_VERSION
from flexref.units import ALIGNMENT_BYTES, aligned

MAGIC = b"flexref\0"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
TRAILER_BYTES = 64
CHUNK_BYTES = 1 << 22
"""Bytes read at a time: large enough for full disk speed, small enough to count as nothing in memory."""

_BODY = struct.Struct("<8sII QQQ 16s")
_CHECK = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the trailer says: the file's length and the length of its metadata, both in bytes; the latter's XXH3-64.

    The metadata holds the checksum of every dataset, so that two files with one checksum of it hold the same tensors.
    """

    file_bytes: int
    metadata_bytes: int
    metadata_checksum: int


def checksum_range(file: int, offset: int, length: int) -> int:
    """XXH3-64 of `length` bytes at `offset` of the open descriptor `file`, in bounded memory; less if the file ends."""
    digest = xxhash.xxh3_64()
    while length > 0:
        chunk = os.pread(file, min(CHUNK_BYTES, length), offset)
        if not chunk:
            break
        digest.update(chunk)
        offset, length = offset + len(chunk), length - len(chunk)
    return digest.intdigest()


def seal(file: int, metadata_bytes: int) -> None:
    """Pad the open, complete file to the alignment and append its trailer, replacing none that it may have had."""
    end = aligned(os.fstat(file).st_size + TRAILER_BYTES)
    os.ftruncate(file, end)
    digest = checksum_range(file, 0, metadata_bytes)
    body = _BODY.pack(MAGIC, FORMAT_VERSION, 0, end, metadata_bytes, digest, bytes(16))
    written = os.pwrite(file, body + _CHECK.pack(xxhash.xxh3_64_intdigest(body)), end - TRAILER_BYTES)
    if written != TRAILER_BYTES:
        raise OSError(f"only {written} of {TRAILER_BYTES} bytes of the trailer were written")


def check_trailer(file: int, path: str) -> Trailer:
    """Check the trailer of the open file and the metadata it vouches for; `WeightFileError` says what is wrong."""
    found = os.fstat(file).st_size
    if os.pread(file, len(HDF5_SIGNATURE), 0) != HDF5_SIGNATURE:
        raise WeightFileError(f"{path} is not a flexref weight file: it does not start like an HDF5 file")
    raw = os.pread(file, TRAILER_BYTES, max(0, found - TRAILER_BYTES))
    body, check = raw[: _BODY.size], raw[_BODY.size :]
    if len(raw) != TRAILER_BYTES or not raw.startswith(MAGIC):
        raise WeightFileError(
            f"{path} does not end with a flexref trailer: it is truncated, another program changed it, or it is foreign"
        )
    _, version, _, file_bytes, metadata_bytes, digest, _ = _BODY.unpack(body)
    if check != _CHECK.pack(xxhash.xxh3_64_intdigest(body)):
        raise WeightFileError(f"{path} is damaged: its trailer does not match its checksum")
    if version != FORMAT_VERSION:
        raise WeightFileError(f"{path} has format version {version}; this flexref reads version {FORMAT_VERSION}")
    if file_bytes != found:
        raise WeightFileError(f"{path} is damaged: it has {found} bytes, its trailer says {file_bytes}")
    if metadata_bytes % ALIGNMENT_BYTES or not 0 < metadata_bytes <= found - TRAILER_BYTES:
        raise WeightFileError(f"{path} is damaged: its trailer gives the metadata {metadata_bytes} bytes")
    if checksum_range(file, 0, metadata_bytes) != digest:
        raise WeightFileError(f"{path} is damaged: its HDF5 metadata does not match its checksum")
    return Trailer(file_bytes, metadata_bytes, digest)
