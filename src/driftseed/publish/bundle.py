"""Bundles: the signed metadata of a fleet and the content of releases as one file, for where no network goes.

A bundle is a tar archive (``core.archive``) in this order: ``bundle.json``, metadata, small targets, contents. What
is in it is believed as little as what a peer sends: metadata goes through the TUF workflow before any content is
looked at, and a content is taken only if that metadata names it, in its length and with its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from driftseed.core import archive, limits
from driftseed.core.errors import ContentMismatch, FileMissing, Misuse, NotFound, WrongFleet
from driftseed.core.ids import Digest, FleetId
from driftseed.core.model import Artifact, Hex64
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.device import FleetTrust
from driftseed.trust.source import FilesSource

FILES_MAX: Final = 8192
"""Metadata files and small targets in a bundle."""
FILES_BYTES_MAX: Final = 256 * limits.MIB
"""Bytes of all of them."""
_CHUNK: Final = 1 * limits.MIB


class Description(Struct, frozen=True, kw_only=True):
    """``bundle.json``: for messages; nothing in it is believed."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    fleet: Hex64
    name: Annotated[str, Meta(max_length=128)] = ""


class BundleResult(Struct, frozen=True, kw_only=True):
    """What was put into a bundle, or taken from one."""

    fleet: str
    timestamp_version: int
    files: int
    """Metadata files and small targets."""
    contents: list[str]
    """SHA-256 of each content."""
    content_bytes: int
    missing: list[str] = []
    """SHA-256 of contents in force that are not in the bundle."""
    dry_run: bool = False


class Progress(Protocol):
    """Told how far it is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Bytes done, bytes to do, and what is being worked on."""


class Readable(Protocol):
    """The bytes of one content, as a file that ends with it."""

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; none at the end. Raises Misuse when the bundle ends too early."""


class Taker(Protocol):
    """Where a bundle goes."""

    fleet: FleetId
    first_root: bytes | None
    """To verify with before anything is handed over; None leaves it to the other side alone."""

    def metadata(self, files: Mapping[str, bytes]) -> None:
        """Take the metadata, before any content. Raises DriftseedError."""

    def content(self, artifact: Artifact, body: Readable) -> None:
        """Take a content, ``artifact.length`` bytes. Raises DriftseedError."""

    def commit(self) -> int:
        """All was handed over. Returns the timestamp version that is trusted now. Raises DriftseedError."""


# --- export ------------------------------------------------------------------------------------------


def export(
    output: BinaryIO,
    *,
    name: str,
    files: Mapping[str, bytes],
    fleet: VerifiedFleet,
    content: Callable[[Artifact], Path],
    releases: Collection[str],
    progress: Progress,
) -> BundleResult:
    """Write a bundle.

    Args:
        output: written from where it is; whoever opened it makes it durable.
        name: the fleet's.
        files: all metadata and small targets by repository name.
        fleet: what they say.
        content: where an artifact's content would be.
        releases: ``NAME`` or ``NAME=VERSION``; none for all that are deployed.
        progress: told of the contents' bytes.

    Raises:
        NotFound: a release is not deployed, or a content of a named release is not at hand.
        OSError: ``output`` cannot be written.
    """
    wanted = artifacts_of(fleet, releases)
    every = artifacts_of(fleet, ())
    at_hand = {digest: each for digest, each in wanted.items() if content(each).is_file()}
    if releases and len(at_hand) < len(wanted):
        lost = next(each for digest, each in wanted.items() if digest not in at_hand)
        raise NotFound(
            f"the content of {lost.filename} ({lost.sha256[:16]}) is not here",
            hint="export where it is: the fleet directory, a hub, or a device that has installed it",
        )
    total = sum(each.length for each in at_hand.values())
    now = int(time.time())
    described = msgspec.json.encode(Description(fleet=fleet.fleet, name=name))
    output.writelines(
        archive.header(entry, len(data), now) + data + bytes(-len(data) % archive.BLOCK)
        for entry, data in ((archive.DESCRIPTION, described), *sorted(files.items()))
    )
    done = 0
    for digest, artifact in sorted(at_hand.items()):
        output.write(archive.header(archive.CONTENT + digest, artifact.length, now))
        with content(artifact).open("rb") as file:
            for chunk in _exactly(file, artifact.length, artifact.filename):
                output.write(chunk)
                done += len(chunk)
                progress(done, total, artifact.filename)
        output.write(bytes(-artifact.length % archive.BLOCK))
    output.write(archive.END)
    return BundleResult(
        fleet=fleet.fleet,
        timestamp_version=fleet.timestamp_version,
        files=len(files),
        contents=sorted(at_hand),
        content_bytes=total,
        missing=sorted(every.keys() - at_hand.keys()),
    )


def artifacts_of(fleet: VerifiedFleet, releases: Collection[str]) -> dict[Digest, Artifact]:
    """The artifacts of what is deployed, by SHA-256.

    Args:
        fleet: trusted.
        releases: ``NAME`` or ``NAME=VERSION``; none for all.

    Raises:
        NotFound: one of them is not deployed.
    """
    found: dict[Digest, Artifact] = {}
    left = set(releases)
    for deployment in fleet.deployments:
        manifest = deployment.release.manifest
        names = {str(manifest.name), f"{manifest.name}={manifest.version}"}
        if not releases or names & set(releases):
            left -= names
            found.update({Digest(each.sha256): each for each in manifest.artifacts})
    if left:
        raise NotFound(
            f"no deployment in force is of release {min(left)!r}", hint="driftseed deployments shows them"
        )
    return found


# --- import ------------------------------------------------------------------------------------------


def take(
    bundle: BinaryIO,
    taker: Taker,
    *,
    size: int,
    dry_run: bool,
    progress: Progress,
    clock: Callable[[], float],
) -> BundleResult:
    """Read a bundle once from its beginning to its end, and hand over what verifies.

    Args:
        bundle: untrusted, at its beginning.
        taker: where it goes; told nothing in a dry run.
        size: bytes of the bundle, for the progress.
        dry_run: verify everything, hand over nothing.
        progress: told of the bundle's bytes.
        clock: seconds since 1970, for expiry.

    Raises:
        Misuse: damaged, truncated, or no bundle.
        WrongFleet: of another fleet.
        TrustError: the metadata does not verify, or a content is not the one that it names.
        DriftseedError: the taker refused.
    """
    entries = _entries(bundle)
    files: dict[str, bytes] = {}
    wanted: dict[Digest, Artifact] = {}
    seen: set[Digest] = set()
    fleet: VerifiedFleet | None = None
    handed = 0
    for header in entries:
        progress(min(bundle.tell(), size), size, header.name)
        if not header.name.startswith(archive.CONTENT):
            if fleet is not None:
                raise Misuse("the bundle is damaged: metadata after content", hint="export it again")
            _read_file(bundle, header, files, taker.fleet)
            continue
        if fleet is None:
            fleet = _verify(files, taker, clock)
            wanted = artifacts_of(fleet, ())
            if not dry_run:
                taker.metadata(files)
        digest = Digest(header.name.removeprefix(archive.CONTENT))
        artifact = wanted.get(digest)
        if artifact is None or artifact.length != header.size or digest in seen:
            raise ContentMismatch(
                f"the bundle's metadata names no content {digest[:16]} of {header.size} bytes"
            )
        seen.add(digest)
        handed += header.size
        body = _Body(bundle, header.size, lambda: progress(min(bundle.tell(), size), size, "content"))
        if dry_run:
            _check(artifact, body)
        else:
            taker.content(artifact, body)
        body.skip()
    if fleet is None:
        fleet = _verify(files, taker, clock)
        wanted = artifacts_of(fleet, ())
        if not dry_run:
            taker.metadata(files)
    version = fleet.timestamp_version if dry_run else taker.commit()
    return BundleResult(
        fleet=fleet.fleet,
        timestamp_version=version,
        files=len(files),
        contents=sorted(seen),
        content_bytes=handed,
        missing=sorted(wanted.keys() - seen),
        dry_run=dry_run,
    )


def _entries(bundle: BinaryIO) -> Iterator[archive.Header]:
    """Headers, one after the other; whoever takes one reads its bytes before the next."""
    name: str | None = None
    while True:
        found = archive.parse_header(_read(bundle, archive.BLOCK))
        if found is None:
            _read(bundle, archive.BLOCK)
            return
        if found.is_name:
            name = archive.parse_long_name(_read(bundle, found.size))
            _read(bundle, found.padding)
            continue
        yield archive.Header(archive.check_name(name or found.name), found.size)
        name = None
        _read(bundle, found.padding)


def _read_file(bundle: BinaryIO, header: archive.Header, files: dict[str, bytes], fleet: FleetId) -> None:
    """Read metadata, a small target, or the description, within bounds."""
    most = min(max(limits.METADATA_BYTES_MAX, limits.TORRENT_BYTES_MAX), FILES_BYTES_MAX)
    held = sum(map(len, files.values()))
    if header.size > most or held + header.size > FILES_BYTES_MAX or len(files) >= FILES_MAX:
        raise Misuse(f"not a bundle: {header.name[:80]} of {header.size} bytes is too much")
    data = _read(bundle, header.size)
    if header.name != archive.DESCRIPTION:
        files[header.name] = data
        return
    try:
        described = msgspec.json.decode(data, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(f"not a bundle: {archive.DESCRIPTION}: {error}") from None
    if described.fleet != fleet:
        raise WrongFleet(
            f"the bundle is of fleet {described.name!r} ({described.fleet[:16]}), this device of {fleet[:16]}"
        )


def _verify(files: Mapping[str, bytes], taker: Taker, clock: Callable[[], float]) -> VerifiedFleet:
    """Look at the metadata as a device does that has seen nothing yet. Raises TrustError or FileMissing."""
    root = taker.first_root or files.get("metadata/1.root.json")
    if root is None:
        raise FileMissing("the bundle has no first root", hint="export it again")
    with tempfile.TemporaryDirectory(prefix="driftseed-bundle-") as scratch:
        fleet = FleetTrust(Path(scratch), root, clock).refresh(FilesSource(files.get))
    if fleet.fleet != taker.fleet:
        raise WrongFleet(f"the bundle is of fleet {fleet.fleet[:16]}, this device of {taker.fleet[:16]}")
    return fleet


def _check(artifact: Artifact, body: Readable) -> None:
    digest = hashlib.sha256()
    while chunk := body.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != artifact.sha256:
        raise ContentMismatch(f"{artifact.filename} in the bundle does not have its signed SHA-256")


def _read(bundle: BinaryIO, size: int) -> bytes:
    data = bundle.read(size)
    if len(data) != size:
        raise Misuse("the bundle is truncated", hint="copy it again; was the stick taken out too early?")
    return data


def _exactly(file: BinaryIO, length: int, what: str) -> Iterator[bytes]:
    left = length
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise ContentMismatch(f"{what} is shorter than its manifest says")
        left -= len(chunk)
        yield chunk


class _Body:
    """The bytes of one content in a bundle, as a file that ends with it."""

    def __init__(self, bundle: BinaryIO, size: int, moved: Callable[[], None]) -> None:
        self._bundle = bundle
        self._left = size
        self._moved = moved

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes. Raises Misuse when the bundle ends too early."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = _read(self._bundle, min(wanted, _CHUNK))
        self._left -= len(data)
        self._moved()
        return data

    def skip(self) -> None:
        """Read what nobody wanted."""
        while self._left:
            self.read(_CHUNK)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file that is durable and whole when this ends, or not there. Raises Misuse if it is there already."""
    try:
        file = path.open("xb")
    except FileExistsError:
        raise Misuse(f"{path} is there already", hint="choose another name, or remove it") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
