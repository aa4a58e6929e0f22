"""The directory that an update module works in: the File API tree of Mender's protocol v3.

Content is *copied* into it (or cloned, where the file system can: same speed as a link, and apart from then
on). A hard link would save the space too, but a module may run as root and write to ``files/NAME``, and
through a link it would change the content store's own file, which others fetch from this device. While
it is copied it is hashed, so that what a module sees is what was signed, even when the disk has changed it
since it was verified.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from driftseed.core import limits
from driftseed.core.errors import ContentMismatch, DiskFull
from driftseed.core.model import Artifact, ReleaseManifest, decode_document, encode_document
from driftseed.core.verified import VerifiedArtifact, VerifiedRelease
from driftseed.store.files import (
    adopt,
    atomic_write,
    disk_full_as_error,
    free_bytes,
    sync_directory,
)

FORMAT_VERSION: Final = "3"
_CHUNK_BYTES: Final = 4 * limits.MIB
_FICLONE: Final = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


class Workdir:
    """What belongs to one update while it is installed.

    ``tree`` is the module's; ``release.json`` beside it is the agent's own copy of the manifest, so that an
    update can be ended, or undone, when the fleet's metadata does not have that release any more.

    Args:
        run_dir: the agent's directory for these.
        deployment_id: one directory for each.
    """

    def __init__(self, run_dir: Path, deployment_id: str) -> None:
        self.directory = run_dir / "payloads" / deployment_id
        self.tree = self.directory / "tree"
        self._manifest = self.directory / "release.json"

    @property
    def exists(self) -> bool:
        """Whether a module has a place to work in."""
        return self.tree.is_dir()

    def prepare(self, release: VerifiedRelease, *, previous: str | None, device_type: str) -> None:
        """Make the tree, without content, from nothing.

        Args:
            release: what is to be installed.
            previous: version of it that is installed, or None.
            device_type: what kind of device this is (its *compatible*).

        Raises:
            DiskFull: no space; what there is of the tree is removed by ``remove``.
            OSError: it cannot be written.
        """
        self.remove()
        manifest = release.manifest
        header = self.tree / "header"
        with disk_full_as_error(self.tree):
            self.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for directory in (self.directory, self.tree, header, self.tree / "tmp"):
                directory.mkdir(mode=0o700)
        atomic_write(self._manifest, encode_document(manifest))
        name = artifact_name(manifest.name, manifest.version)
        provides = {"artifact_name": name, "artifact_group": ""}
        header_info = {
            "payloads": [{"type": manifest.module}],
            "artifact_provides": provides,
            "artifact_depends": {},
        }
        type_info = {
            "type": manifest.module,
            "artifact_provides": {f"{manifest.name}.version": manifest.version},
            "clears_artifact_provides": [f"{manifest.name}.*"],
        }
        # As Mender's client writes them: what describes the device ends its line, what was signed does not.
        files = {
            "version": _line(FORMAT_VERSION),
            "current_artifact_name": _line(artifact_name(manifest.name, previous) if previous else ""),
            "current_artifact_group": b"",
            "current_device_type": _line(device_type),
            "header/artifact_group": b"",
            "header/artifact_name": name.encode(),
            "header/payload_type": manifest.module.encode(),
            "header/header-info": msgspec.json.encode(header_info),
            "header/type-info": msgspec.json.encode(type_info),
            "header/meta-data": msgspec.json.encode(manifest.meta, order="sorted"),
        }
        for path, data in files.items():
            atomic_write(self.tree / path, data)
        # A tree that is only half there after a power cut would fail the states that undo things.
        for directory in (self.tree, self.directory, self.directory.parent):
            sync_directory(directory)

    def manifest(self) -> ReleaseManifest | None:
        """The manifest that was verified before the tree was made; None when it is not there."""
        try:
            return decode_document(self._manifest.read_bytes(), ReleaseManifest)
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def add_file(self, artifact: VerifiedArtifact) -> None:
        """Put the content into the files tree.

        Raises:
            DiskFull: not enough space, found out before or while copying.
            ContentMismatch: it is not any more what was verified.
            OSError: it cannot be read or written.
        """
        signed = artifact.artifact
        if free_bytes(self.tree) < signed.length + limits.DISK_MARGIN_BYTES:
            raise DiskFull(
                f"{signed.length} bytes are needed to install {signed.filename}, "
                f"and {limits.DISK_MARGIN_BYTES} must stay free in {self.tree}",
                hint="free some space on this file system; it is tried again",
            )
        files = self.tree / "files"
        with disk_full_as_error(files):
            files.mkdir(mode=0o700, exist_ok=True)
        unfinished = self.directory / "content.unverified"
        copying = copy_verified(Path(artifact.path), unfinished, signed)
        # In pieces, so that an agent which is stopped does not wait for the end of a large file.
        while await asyncio.to_thread(next, copying, None) is not None:
            continue
        adopt(unfinished, files / signed.filename)

    def remove(self) -> None:
        """Remove everything; nothing happens when there is nothing.

        Raises:
            OSError: something is there and cannot be removed.
        """
        if self.directory.exists():
            shutil.rmtree(self.directory)


def artifact_name(release: str, version: str) -> str:
    """A release and its version as one name, as Mender's artifacts have them."""
    return f"{release}-{version}"


def copy_verified(source: Path, target: Path, signed: Artifact) -> Iterator[int]:
    """Copy a file and check that the copy is what was signed.

    Yields:
        Bytes copied so far, after each piece.

    Raises:
        ContentMismatch: its length or SHA-256 is not the signed one.
        DiskFull: no space for the copy.
        OSError: it cannot be read or written.
    """
    digest = hashlib.sha256()
    done = 0
    with disk_full_as_error(target), source.open("rb") as reading, target.open("w+b") as writing:
        cloned = _clone(reading.fileno(), writing.fileno())
        # A clone is read itself: only then is it known that it is what was signed.
        data_source = writing if cloned else reading
        while data := data_source.read(_CHUNK_BYTES):
            digest.update(data)
            done += len(data)
            if done > signed.length:
                break
            if not cloned:
                writing.write(data)
            yield done
    check_digest(signed, done, digest.hexdigest())


def check_digest(signed: Artifact, length: int, sha256: str) -> None:
    """Raise ContentMismatch unless a file that was just read is the signed one."""
    if (length, sha256) != (signed.length, signed.sha256):
        raise ContentMismatch(
            f"{signed.filename} is not what was verified any more: {length} bytes with SHA-256 {sha256}, "
            f"and {signed.length} bytes with {signed.sha256} are signed",
            hint="check the disk; the file is fetched again",
        )


def _clone(source: int, target: int) -> bool:
    """Share the blocks of a file until either is written to (btrfs, XFS, bcachefs and others)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # the file system cannot, or the two are not on the same one
    return True


def _line(text: str) -> bytes:
    return f"{text}\n".encode() if text else b""


def leftovers(run_dir: Path, wanted: frozenset[str]) -> list[Path]:
    """Directories of updates that are not under way.

    Args:
        run_dir: as given to ``Workdir``.
        wanted: deployment ids of those that are.
    """
    payloads = run_dir / "payloads"
    if not payloads.is_dir():
        return []
    return sorted(path for path in payloads.iterdir() if path.name not in wanted and path.is_dir())
