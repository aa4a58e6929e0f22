"""Makes a release: checks all that was asked for, reads the files, and only then signs.

``plan_release`` does everything that can fail and changes nothing in the fleet's directory; a dry run ends
there. Signing is one call of the repository with the plan's manifest and files.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from driftseed.core import limits
from driftseed.core.errors import Misuse, NotFound, WouldOverwrite
from driftseed.core.ids import Digest, SafeName
from driftseed.core.model import Artifact, HealthCheck, ReleaseManifest, encode_document
from driftseed.core.selectors import CONVENTIONAL_LABELS, INVENTORY_KEYS, parse_selector
from driftseed.core.verified import VerifiedRelease
from driftseed.core.versions import version_key
from driftseed.publish.archives import check_archive
from driftseed.publish.artifacts import ArtifactArgument, Progress, ReadArtifact, read_artifact, url_filename
from driftseed.publish.download import download
from driftseed.swarm.torrent import make_torrent

ARCHIVE_MODULES: Final = frozenset({"directory"})
"""Update modules that unpack what they are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """What a person asks for."""

    name: SafeName
    version: SafeName
    module: SafeName
    artifacts: Sequence[ArtifactArgument]
    health: HealthCheck | None = None
    module_timeout_s: float = limits.MODULE_TIMEOUT_S
    meta: Mapping[str, Any]
    piece_length: int | None = None
    """Bytes of a BitTorrent piece; None chooses by the file's length."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that the release will carry."""

    path: Path
    torrent: bytes


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """A release that was checked and only needs to be signed."""

    manifest: ReleaseManifest
    files: Mapping[Digest, PlannedFile]
    """By the SHA-256 of the artifact."""


def known_keys(declared: Collection[str]) -> frozenset[str]:
    """Keys that a selector may use: what devices say of themselves, and labels that this fleet gives."""
    return INVENTORY_KEYS | CONVENTIONAL_LABELS | frozenset(declared)


def newest_first(releases: Iterable[VerifiedRelease]) -> list[VerifiedRelease]:
    """Releases by name, of each name the newest version first."""
    by_age = sorted(releases, key=lambda one: version_key(one.manifest.version), reverse=True)
    return sorted(by_age, key=lambda one: one.manifest.name)


def manifest_digest(manifest: ReleaseManifest) -> Digest:
    """SHA-256 of the manifest's file: what a deployment names."""
    return _sha256(encode_document(manifest))


def check_new(releases: Iterable[VerifiedRelease], name: SafeName, version: SafeName) -> None:
    """Refuse a release that there is already, before gigabytes are read.

    Raises:
        WouldOverwrite: devices that have the one would never take the other for what it is.
    """
    if any((one.manifest.name, one.manifest.version) == (name, version) for one in releases):
        raise WouldOverwrite(
            f"there is a release {name} {version} already, and a signed release never changes",
            hint="give the new one another version",
        )


def parse_health_check(command: str | None, timeout_s: float) -> HealthCheck | None:
    """A health check from the command line; words are split as a shell does, and no shell runs them.

    Raises:
        Misuse: quotes do not match, or no words, or too many.
    """
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Misuse(f"not a command: {command[:160]!r}: {error}", hint="check its quotes") from None
    if not 1 <= len(words) <= 64:
        raise Misuse(f"a health check of {len(words)} words", hint="1 to 64; put more into a script")
    return HealthCheck(command=words, timeout_s=timeout_s)


def read_meta(pairs: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    """What the update module gets as its meta-data: an object from a file, overlaid by ``k=v`` pairs.

    Raises:
        NotFound: there is no such file.
        Misuse: the file is not a JSON object.
    """
    if file is None:
        return dict(pairs)
    try:
        value = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise NotFound(f"there is no file {str(file)!r}") from None
    except OSError as error:
        raise Misuse(f"{file} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(f"{file} is not a JSON object: {error}") from None
    return value | dict(pairs)


def check_selectors(artifacts: Sequence[ArtifactArgument], keys: Collection[str] | None) -> None:
    """Check every selector, before any file is read.

    Args:
        artifacts: as given.
        keys: keys that may be used; None allows any.

    Raises:
        SelectorError: one does not parse; UnknownSelectorKey: one names a key that no device has.
        Misuse: none or too many artifacts, or two that no selector tells apart.
    """
    if not 1 <= len(artifacts) <= limits.VARIANTS_MAX:
        raise Misuse(f"{len(artifacts)} artifacts", hint=f"give --artifact 1 to {limits.VARIANTS_MAX} times")
    seen: dict[str, str] = {}
    for artifact in artifacts:
        canonical = str(parse_selector(artifact.selector, known_keys=keys))
        if canonical in seen:
            raise Misuse(
                f"no device could choose between {seen[canonical]} and {artifact.source}: "
                f"both are for {canonical or 'all devices'}",
                hint="give each artifact a selector of its own: --artifact FILE:arch=arm64",
            )
        seen[canonical] = artifact.source


def plan_release(
    request: ReleaseRequest,
    *,
    keys: Collection[str] | None,
    created: str,
    scratch: Path,
    progress: Progress,
) -> ReleasePlan:
    """Check a release and read its files.

    Args:
        request: what is asked for.
        keys: keys that selectors may use; None allows any.
        created: now, RFC 3339.
        scratch: an empty directory of the caller's, for downloads; the plan's files may be in it.
        progress: called while files are read.

    Raises:
        SelectorError, Misuse: see ``check_selectors``; or the manifest would be too large.
        ArtifactUnreadable: a file cannot be released as it is; the message says why.
        DiskFull: a download does not fit.
    """
    check_selectors(request.artifacts, keys)
    files: dict[Digest, PlannedFile] = {}
    artifacts = []
    for wanted in request.artifacts:
        found = _read(wanted, scratch, progress)
        if request.module in ARCHIVE_MODULES:
            check_archive(found.path)
        if found.sha256 not in files:
            files[found.sha256] = PlannedFile(found.path, _torrent(found, request.piece_length))
        artifacts.append(
            Artifact(
                filename=found.filename,
                length=found.length,
                sha256=found.sha256,
                torrent_sha256=_sha256(files[found.sha256].torrent),
                selector=wanted.selector,
            )
        )
    manifest = ReleaseManifest(
        name=request.name,
        version=request.version,
        module=request.module,
        artifacts=artifacts,
        created=created,
        health=request.health,
        module_timeout_s=request.module_timeout_s,
        meta=dict(request.meta),
    )
    if len(encode_document(manifest)) > limits.DOCUMENT_BYTES_MAX:
        raise Misuse(
            f"the release's manifest would have more than {limits.DOCUMENT_BYTES_MAX} bytes",
            hint="put less into --meta and --meta-file",
        )
    return ReleasePlan(manifest, files)


def _read(wanted: ArtifactArgument, scratch: Path, progress: Progress) -> ReadArtifact:
    if wanted.is_url:
        path = download(wanted.source, scratch, progress)
        return read_artifact(path, url_filename(wanted.source), progress)
    path = Path(wanted.source)
    return read_artifact(path, path.name, progress)


def _torrent(found: ReadArtifact, piece_length: int | None) -> bytes:
    try:
        return make_torrent(found.path, found.sha256, piece_length)
    except ValueError as error:
        raise Misuse(
            f"{found.filename} cannot be shared with such pieces: {error}", hint="leave --piece-length out"
        ) from None


def _sha256(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())
