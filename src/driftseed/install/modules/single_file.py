"""Update module ``single-file``: one file, replaced atomically.

The payload is the file.

Meta-data:

- ``path`` (string, required): where it goes, absolute or relative to the install root.
- ``mode`` (string of octal digits, default ``"0644"``): its permissions; no set-user-id bits.
- ``owner`` (string ``USER`` or ``USER:GROUP``, optional): names or numbers.

The file before is kept beside it as ``.NAME.driftseed-previous`` until ``Cleanup``, for a rollback. Symbolic
links are not followed: not at the file's own name, and below the install root not anywhere on the way to it.
A directory in which others than its owner may write is refused, because they could put a link there.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
from pathlib import Path

from driftseed.core.errors import ModuleFailed
from driftseed.install.modules.common import Module, Tree, answer, make_directories
from driftseed.store.files import adopt, sync_directory

_BEFORE = "before"
"""Note: whether there was a file before (``yes`` or ``no``), once its copy is safe."""
_MODE = re.compile(r"0?[0-7]{3}")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class _Place:
    """Where the file goes, and the names beside it."""

    def __init__(self, tree: Tree) -> None:
        named = tree.text("path")
        if not named or named.endswith("/"):
            raise ModuleFailed("meta-data 'path' is missing: it says where the file goes")
        if ".." in Path(named).parts or "\0" in named:
            raise ModuleFailed(f"meta-data 'path' leads upwards: {named}")
        self.path = tree.install_root / named
        if self.path == tree.install_root:
            raise ModuleFailed(f"meta-data 'path' names no file: {named}")
        self._root = tree.install_root if not Path(named).is_absolute() else None
        self.previous = self.path.with_name(f".{self.path.name}.driftseed-previous")
        self.unfinished = self.path.with_name(f".{self.path.name}.driftseed-new")

    def check(self) -> None:
        """Raise ModuleFailed where somebody could have put a trap."""
        if self._root is not None:
            for place in (self.path, *self.path.parents):
                if place == self._root:
                    break
                if place.is_symlink():
                    raise ModuleFailed(f"{place} is a symbolic link: it is not followed")
        if self.path.is_symlink():
            raise ModuleFailed(f"{self.path} is a symbolic link: it is not followed")
        if self.path.exists() and not self.path.is_file():
            raise ModuleFailed(f"{self.path} is there and is not a file")
        parent = self.path.parent
        if parent.exists():
            status = parent.stat()
            if status.st_mode & _WRITABLE_BY_OTHERS:
                raise ModuleFailed(f"others can write into {parent}: chmod go-w {parent}")


def install(tree: Tree) -> None:
    """``ArtifactInstall``."""
    place = _Place(tree)
    mode, owner = _mode(tree), _owner(tree)
    payload = tree.payload()
    place.check()
    make_directories(place.path.parent)
    if tree.recall(_BEFORE) is None:
        _keep(place)
        tree.remember(_BEFORE, "yes" if place.path.exists() else "no")
    try:
        _write(payload, place.unfinished, mode, owner)
    except BaseException:
        place.unfinished.unlink(missing_ok=True)
        raise
    _put(place.unfinished, place.path)


def roll_back(tree: Tree) -> None:
    """``ArtifactRollback``."""
    before = tree.recall(_BEFORE)
    if before is None:
        return  # ArtifactInstall did not come to touch anything
    place = _Place(tree)
    if before == "no":
        place.path.unlink(missing_ok=True)
        sync_directory(place.path.parent)
        return
    # A link to it, so that it is still there when this is called again.
    place.unfinished.unlink(missing_ok=True)
    os.link(place.previous, place.unfinished, follow_symlinks=False)
    _put(place.unfinished, place.path)


def clean_up(tree: Tree) -> None:
    """``Cleanup``."""
    if not tree.text("path"):
        return
    place = _Place(tree)
    for path in (place.unfinished, place.previous):
        path.unlink(missing_ok=True)
    if place.path.parent.is_dir():
        sync_directory(place.path.parent)


def _keep(place: _Place) -> None:
    """Keep the file that is there. A link is enough: the new one gets its name, not its place on the disk."""
    place.previous.unlink(missing_ok=True)
    if place.path.exists():
        os.link(place.path, place.previous, follow_symlinks=False)
    sync_directory(place.path.parent)


def _write(payload: Path, target: Path, mode: int, owner: tuple[int, int]) -> None:
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as writing, payload.open("rb") as reading:
        shutil.copyfileobj(reading, writing)
        if owner != (-1, -1):
            os.fchown(writing.fileno(), *owner)
        os.fchmod(writing.fileno(), mode)


def _put(source: Path, target: Path) -> None:
    adopt(source, target)
    # When both are the same file already, rename(2) does nothing, and the source stays.
    source.unlink(missing_ok=True)


def _mode(tree: Tree) -> int:
    text = tree.text("mode") or "0644"
    if not _MODE.fullmatch(text):
        raise ModuleFailed(f"meta-data 'mode' is {text!r}: three octal digits are needed, such as '0644'")
    return int(text, 8)


def _owner(tree: Tree) -> tuple[int, int]:
    """User and group id; -1: as it comes."""
    text = tree.text("owner")
    if text is None:
        return -1, -1
    user, _, group = text.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ModuleFailed(f"meta-data 'owner' is {text!r}: this device has no such user or group") from None
    return uid, gid


MODULE = Module(
    {
        "SupportsRollback": answer("Yes"),
        "NeedsArtifactReboot": answer("No"),
        "ArtifactInstall": install,
        "ArtifactRollback": roll_back,
        "Cleanup": clean_up,
    }
)
