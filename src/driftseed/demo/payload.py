"""What the demo publishes: the standard library of the Python that runs it, in four versions.

Version 1 is the library as it is, one variant for each architecture. Version 2 drops the modules that PEP 594
retired and stamps every package. Version 3 has lost a line in ``json``, so that its health check fails. Version
4 is never seen whole by anybody but its publisher and an attacker.
"""

from __future__ import annotations

import io
import os
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from driftseed.core import limits
from driftseed.core.errors import NotFound
from driftseed.core.model import HealthCheck

Tree: TypeAlias = Mapping[str, bytes]
"""Files by their path."""

RELEASE: Final = "python-stdlib"
MODULE: Final = "directory"
ARCHITECTURES: Final = ("arm64", "amd64")
GOOD, NEXT, BROKEN, UNSEEN = "1.0", "2.0", "3.0", "4.0"
PIECE_BYTES: Final = 256 * limits.KIB
"""Bytes of a BitTorrent piece. What is saved on a fast loopback by smaller ones, twenty processes on two cores
lose again many times over: each piece is announced to every peer through a tunnel."""
BUILD: Final = "_driftseed_build.py"
"""The one file in which the variants of a version differ, as a compiler's output would."""

_LEFT_OUT: Final = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)
_RETIRED: Final = frozenset(
    [
        "aifc",
        "asynchat",
        "asyncore",
        "audioop",
        "cgi",
        "cgitb",
        "chunk",
        "crypt",
        "distutils",
        "imghdr",
        "imp",
        "lib2to3",
        "mailcap",
        "msilib",
        "nis",
        "nntplib",
        "ossaudiodev",
        "pipes",
        "smtpd",
        "sndhdr",
        "spwd",
        "sunau",
        "telnetlib",
        "uu",
        "xdrlib",
    ]
)
_CHECK: Final = (
    "import sys; sys.path.insert(0, '.'); import json, _driftseed_build as build; "
    "sys.exit(json.loads(json.dumps(build.VERSION)) != {version!r})"
)
_CHECK_TIMEOUT_S: Final = 30.0
"""Seconds: a fraction of one is needed, on a machine that has time."""


@dataclass(frozen=True, slots=True)
class Library:
    """The standard library, read once."""

    root: Path
    files: Tree

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    def version(self, version: str, arch: str) -> Tree:
        """The files of one variant of one version."""
        files = dict(self.files)
        if version != GOOD:
            files = {name: data for name, data in files.items() if not _is_retired(name)}
            stamp = f"\n# {RELEASE} {version} for {arch}\n".encode()
            files |= {name: data + stamp for name, data in files.items() if name.endswith("__init__.py")}
        if version == BROKEN:
            files["json/decoder.py"] = files["json/decoder.py"].replace(b"\nimport re\n", b"\nimport\n", 1)
        files[BUILD] = f"VERSION = {version!r}\nARCH = {arch!r}\n".encode()
        return files


def read_library() -> Library:
    """Read the running Python's standard library, without tests, caches and what others installed into it.

    Raises:
        NotFound: it is not a directory of files that can be read.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files: dict[str, bytes] = {}
    for directory, names, filenames in os.walk(root):
        names[:] = sorted(each for each in names if each not in _LEFT_OUT and not each.startswith("config-"))
        for name in sorted(filenames):
            path = Path(directory, name)
            # A distribution links some of its files to elsewhere; the links may lead nowhere.
            if path.is_file() and os.access(path, os.R_OK):
                files[path.relative_to(root).as_posix()] = path.read_bytes()
    if "json/decoder.py" not in files:
        raise NotFound(
            f"the standard library of this Python is not at {root}", hint="run the demo with another Python"
        )
    return Library(root, files)


def pack(files: Tree, target: Path) -> None:
    """Write a tar archive; the same files always make the same bytes."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))


def unpack(archive: Path) -> dict[str, bytes]:
    """The files of an archive that ``pack`` made."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                found[member.name] = content.read()
    return found


def health_check(version: str) -> HealthCheck:
    """Have the installed library itself say which version it is: isolated, and leaving no bytecode behind."""
    code = _CHECK.format(version=version)
    return HealthCheck(command=[sys.executable, "-I", "-S", "-B", "-c", code], timeout_s=_CHECK_TIMEOUT_S)


def _is_retired(name: str) -> bool:
    first = name.removeprefix("lib-dynload/").partition("/")[0].partition(".")[0]
    return first.lstrip("_") in _RETIRED


def differences(installed: Path, published: Tree) -> list[str]:
    """Compare a directory with what was published, byte for byte.

    Returns:
        What is missing, differs, or should not be there, in words; nothing when all is well.
    """
    found: list[str] = []
    present: set[str] = set()
    for directory, _, filenames in os.walk(installed):
        present.update(Path(directory, name).relative_to(installed).as_posix() for name in filenames)
    for name, data in published.items():
        path = installed / name
        if name not in present:
            found.append(f"{name} is missing")
        elif path.is_symlink() or path.read_bytes() != data:
            found.append(f"{name} differs")
    found += [f"{name} was not published" for name in sorted(present - published.keys())]
    return found
