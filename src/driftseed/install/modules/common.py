"""What the built-in update modules share: reading the File API tree, and writing so that it lasts.

Every state may be called again after a power cut at any instant in it, so each of them first finds out how
far it came the last time. What they must remember between states is in the tree's ``tmp``, which lasts from
``ArtifactInstall`` to ``Cleanup``, reboots included.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from driftseed.core.errors import DiskFull, DriftseedError, ModuleFailed
from driftseed.core.ids import parse_safe_name
from driftseed.store.files import atomic_write, replace_link, sync_directory

Handler = Callable[["Tree"], None]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Module(NamedTuple):
    """A built-in module: what it does in each state; unknown states are a success, as the protocol asks."""

    states: Mapping[str, Handler]


class Tree(NamedTuple):
    """The File API tree, and what the agent says in the environment."""

    path: Path
    install_root: Path
    release: str
    version: str
    sha256: str

    @property
    def tmp(self) -> Path:
        """Lasts until the end of the update."""
        return self.path / "tmp"

    @property
    def meta(self) -> Mapping[str, Any]:
        """The release's meta-data.

        Raises:
            ModuleFailed: it is not a JSON object.
        """
        data = (self.path / "header" / "meta-data").read_text(encoding="utf-8")
        try:
            meta = json.loads(data) if data else {}
        except ValueError as error:
            raise ModuleFailed(f"the meta-data is not JSON: {error}") from None
        if not isinstance(meta, dict):
            raise ModuleFailed("the meta-data is not a JSON object")
        return meta

    def text(self, key: str) -> str | None:
        """A string of the meta-data, or None. Raises ModuleFailed for anything else."""
        value = self.meta.get(key)
        if value is not None and not isinstance(value, str):
            raise ModuleFailed(f"meta-data {key!r} is {value!r}: a string is needed")
        return value

    def payload(self) -> Path:
        """The one file to install. Raises ModuleFailed: there is not exactly one."""
        files = sorted((self.path / "files").iterdir())
        if len(files) != 1:
            raise ModuleFailed(f"one file is needed and {len(files)} are here")
        return files[0]

    def remember(self, name: str, value: str) -> None:
        """Write a note down, durably, unless it is there already: the first call knows best."""
        note = self.tmp / name
        if not note.exists():
            atomic_write(note, value.encode(), mode=0o600)

    def recall(self, name: str) -> str | None:
        """A note, or None."""
        try:
            return (self.tmp / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """Remove a note, durably."""
        (self.tmp / name).unlink(missing_ok=True)
        sync_directory(self.tmp)


def load(name: str) -> Module:
    """A built-in module by its name. Only that one is imported: a call should not cost more than it must."""
    module = import_module(f"driftseed.install.modules.{name.replace('-', '_')}").MODULE
    if not isinstance(module, Module):
        raise TypeError(f"{name} is not an update module")
    return module


def run(module: Module, arguments: list[str]) -> int:
    """Call a module as the protocol says.

    Returns:
        Exit status: 0; 72 when the disk is full; 1 for every other failure, with the reason on standard error.
    """
    if len(arguments) != 2:
        sys.stderr.write("called by the agent, with a state and a directory\n")
        return 2
    state, directory = arguments
    handler = module.states.get(state)
    if handler is None:
        return 0
    try:
        handler(
            Tree(
                Path(directory),
                Path(os.environ["DRIFTSEED_INSTALL_ROOT"]),
                parse_safe_name(os.environ["DRIFTSEED_RELEASE"], "release name"),
                parse_safe_name(os.environ["DRIFTSEED_VERSION"], "version"),
                os.environ["DRIFTSEED_ARTIFACT_SHA256"],
            )
        )
    except KeyError as error:
        sys.stderr.write(f"the agent did not set {error}\n")
    except DriftseedError as error:
        sys.stderr.write(f"{error.message}\n")
        return DiskFull.exit_code if isinstance(error, DiskFull) else 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return DiskFull.exit_code if error.errno in _FULL else 1
    else:
        return 0
    return 1


def answer(text: str) -> Handler:
    """A handler that answers a question always alike."""

    def say(_tree: Tree) -> None:
        sys.stdout.write(f"{text}\n")

    return say


def sync_file_system(path: Path) -> None:
    """Make everything on a file system durable, in one go: thousands of fsyncs take minutes on an SD card.

    Raises:
        OSError: something could not be written (since Linux 5.8 syncfs(2) says so).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Make a directory and those above it, durably."""
    missing = []
    place = path
    while not place.exists():
        missing.append(place)
        place = place.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o755, exist_ok=True)
        sync_directory(directory.parent)


def switch_link(link: Path, target: str) -> None:
    """``replace_link``, of a link only.

    Raises:
        ModuleFailed: what has the name is not a symbolic link.
    """
    if link.exists() and not link.is_symlink():
        raise ModuleFailed(f"{link} is in the way: it is not a symbolic link of ours")
    replace_link(link, target)


def read_link(link: Path) -> str:
    """Where a symbolic link points, or nothing when there is none."""
    return str(link.readlink()) if link.is_symlink() else ""
