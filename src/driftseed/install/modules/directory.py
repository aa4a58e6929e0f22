"""Update module ``directory``: a versioned directory per release, switched atomically.

The payload is one tar archive (plain, gzip, bzip2, xz) or zip archive. It is unpacked into
``BASE/versions/VERSION-SHA8`` (SHA8: the first 8 digits of the artifact's SHA-256), and the symbolic link
``BASE/current`` is then pointed at it; programs use ``BASE/current/...``. ``BASE/previous`` points at the
version before, which is kept; older ones are removed by ``Cleanup`` once the new one is committed. All that
is in ``BASE/versions`` belongs to this module.

Meta-data:

- ``path`` (string, optional): BASE, absolute or relative to the install root. Default: the release's name.

At any instant ``current`` is the old version or the new one, whole: the archive is unpacked under another
name and is on the disk before it gets its own; only then the link is replaced, in one step.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from driftseed.core.errors import ModuleFailed
from driftseed.install.modules.common import (
    Module,
    Tree,
    answer,
    make_directories,
    read_link,
    switch_link,
    sync_file_system,
)
from driftseed.store.files import rename_directory, sync_directory

_UNFINISHED = ".unpacking"
_BEFORE = "before"
"""Note: where ``current`` pointed before this update, or nothing."""
_COMMITTED = "committed"
"""Note: the new version is committed, so Cleanup keeps what was before as ``previous``."""


class _Base:
    """The directory of one release."""

    def __init__(self, tree: Tree) -> None:
        named = tree.text("path")
        self.path = tree.install_root / (named if named is not None else tree.release)
        if ".." in self.path.parts:
            raise ModuleFailed(f"meta-data 'path' leads upwards: {named}")
        self.versions = self.path / "versions"
        self.current = self.path / "current"
        self.previous = self.path / "previous"

    def remove(self, name: str) -> None:
        """Remove a version: under another name first, so that half of one never has a version's name."""
        doomed = self.versions / f".removing-{name}"
        _remove_tree(doomed)
        if (self.versions / name).exists():
            rename_directory(self.versions / name, doomed)
        _remove_tree(doomed)


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def install(tree: Tree) -> None:
    """``ArtifactInstall``."""
    # Only here: reading archives takes longer to import than all the rest, and most calls need none of it.
    from driftseed.install.modules.unpack import unpack  # noqa: PLC0415 - see above

    base = _Base(tree)
    payload = tree.payload()
    make_directories(base.versions)
    tree.remember(_BEFORE, read_link(base.current))
    in_use = {Path(read_link(base.current)).name, Path(read_link(base.previous)).name}

    plain = f"{tree.version}-{tree.sha256[:8]}"
    # The same release installed again must not be unpacked over the one that is running.
    name = next(each for each in (plain, f"{plain}.a", f"{plain}.b") if each not in in_use)
    base.remove(name)
    unfinished = base.versions / _UNFINISHED
    _remove_tree(unfinished)
    try:
        unfinished.mkdir(mode=0o755)
        unpack(payload, unfinished)
        sync_file_system(unfinished)
    except BaseException:
        # Whatever happened, a full disk above all: give the space back now.
        _remove_tree(unfinished)
        raise
    rename_directory(unfinished, base.versions / name)
    switch_link(base.current, f"versions/{name}")


def commit(tree: Tree) -> None:
    """``ArtifactCommit``: nothing changes; a rollback is possible until ``Cleanup``."""
    tree.remember(_COMMITTED, "")


def roll_back(tree: Tree) -> None:
    """``ArtifactRollback``."""
    base = _Base(tree)
    tree.forget(_COMMITTED)
    before = tree.recall(_BEFORE)
    if before is None:
        return  # ArtifactInstall did not come to touch anything
    if before:
        switch_link(base.current, before)
    elif base.current.is_symlink():
        base.current.unlink()
        sync_directory(base.path)


def clean_up(tree: Tree) -> None:
    """``Cleanup``: keep what ``current`` and ``previous`` point at, and nothing else."""
    base = _Base(tree)
    if tree.recall(_BEFORE) is None or not base.versions.is_dir():
        return  # nothing was touched
    current, before = read_link(base.current), tree.recall(_BEFORE)
    if tree.recall(_COMMITTED) is not None and before and before != current:
        switch_link(base.previous, before)
    kept = {Path(current).name, Path(read_link(base.previous)).name}
    for path in sorted(base.versions.iterdir()):
        if path.name.startswith("."):
            _remove_tree(path)
        elif path.name not in kept:
            base.remove(path.name)
    if not any(base.versions.iterdir()):
        base.versions.rmdir()  # the first version ever was rolled back


MODULE = Module(
    {
        "SupportsRollback": answer("Yes"),
        "NeedsArtifactReboot": answer("No"),
        "ArtifactInstall": install,
        "ArtifactCommit": commit,
        "ArtifactRollback": roll_back,
        "Cleanup": clean_up,
    }
)
