"""The operator's side of the demo: a fleet directory, releases, deployments, and what a thief would sign."""

from __future__ import annotations

import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from driftseed.core.ids import parse_safe_name
from driftseed.core.model import Artifact, NodeAddress
from driftseed.demo import payload
from driftseed.demo.payload import Library
from driftseed.publish.artifacts import ArtifactArgument
from driftseed.publish.fleet import add_hub, invite
from driftseed.publish.release import ReleaseRequest, plan_release
from driftseed.publish.send import LocalApi, PublishResult, publish_to_agent, publish_to_hub
from driftseed.store.files import write_secret
from driftseed.trust.hubkit import export_hub_kit
from driftseed.trust.keys import load_signer
from driftseed.trust.repository import FleetRepository
from driftseed.trust.signing import meta_file, sign_timestamp

NAME = "demo"
TIMESTAMP = "metadata/timestamp.json"
LABELS = {"site": "demo"}
_TICKET_LIFETIME_S = 3600.0
_FORGED_AHEAD = 1000
"""Versions by which a forged timestamp is ahead: it would count before all true ones, if it counted."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A release and its deployment, in the fleet directory and not yet anywhere else."""

    version: str
    deployment: str
    artifacts: dict[str, Artifact]
    """By architecture."""

    @property
    def bytes(self) -> int:
        """Of all variants."""
        return sum(artifact.length for artifact in self.artifacts.values())


class Publisher:
    """Holds all keys, as no single person should.

    Args:
        directory: the fleet directory, made here.
        scratch: for archives.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        self._directory = directory
        self._scratch = scratch
        self.repository = FleetRepository.create(
            directory, name=NAME, root_keys=1, threshold=1, passphrase=None, clock=time.time
        )
        self._ticket = ""

    def write_kit(self, path: Path) -> None:
        """What the hub needs."""
        write_secret(path, export_hub_kit(self.repository))

    def invite(self, hub: NodeAddress, uses: int) -> str:
        """Sign where the hub is, and make a ticket for so many devices."""
        add_hub(self.repository, hub)
        self._ticket = invite(
            self.repository,
            uses=uses,
            lifetime_s=_TICKET_LIFETIME_S,
            labels=LABELS,
            hubs=[],
            now=time.time(),
        ).ticket
        return self._ticket

    def sign(self, library: Library, version: str) -> Signed:
        """Pack, release and deploy a version of the library to every device; blocking."""
        arguments = []
        with tempfile.TemporaryDirectory(dir=self._scratch) as packed:
            for arch in payload.ARCHITECTURES:
                path = Path(packed, f"stdlib-{version}-{arch}.tar")
                payload.pack(library.version(version, arch), path)
                arguments.append(ArtifactArgument(str(path), f"arch={arch}"))
            request = ReleaseRequest(
                name=parse_safe_name(payload.RELEASE, "release name"),
                version=parse_safe_name(version, "version"),
                module=parse_safe_name(payload.MODULE, "module"),
                artifacts=arguments,
                health=payload.health_check(version),
                meta={},
                piece_length=payload.PIECE_BYTES,
            )
            plan = plan_release(
                request,
                keys=None,
                created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                scratch=Path(packed),
                progress=_quiet,
            )
            self.repository.add_release(
                plan.manifest, {sha256: (each.path, each.torrent) for sha256, each in plan.files.items()}
            )
        deployment = self.repository.add_deployment(
            deployment_id=uuid.uuid4().hex,
            release=payload.RELEASE,
            version=version,
            selector=",".join(f"{key}={value}" for key, value in LABELS.items()),
        )
        artifacts = dict(zip(payload.ARCHITECTURES, plan.manifest.artifacts, strict=True))
        return Signed(version, deployment.id, artifacts)

    def timestamp(self) -> bytes:
        """The newest timestamp.json."""
        return self.repository.metadata_files()[TIMESTAMP]

    def published(self, signed: Signed, arch: str) -> payload.Tree:
        """The files of a variant, read back from what was signed."""
        return payload.unpack(self.repository.content(signed.artifacts[arch]))

    async def publish(self, timeout_s: float) -> PublishResult:
        """Hand everything to the hub. Raises DriftseedError."""
        return await publish_to_hub(self.repository, self._ticket, timeout_s=timeout_s, progress=_untold)

    def publish_through(self, api: LocalApi) -> PublishResult:
        """Hand everything to an agent, through its local socket; blocking. Raises DriftseedError."""
        return publish_to_agent(self.repository, api, progress=_untold)

    def publish_metadata_through(self, api: LocalApi) -> None:
        """Hand an agent the metadata without the content; blocking. Raises DriftseedError."""
        submission = api.request("POST", "/v1/submit")["submission"]
        for name, data in self.repository.files().items():
            api.send_file(f"/v1/submit/{submission}/files/{name}", data)
        api.request("POST", f"/v1/submit/{submission}/commit")

    def forge_timestamp(self) -> bytes:
        """What somebody who has stolen the build system's key, and no other, can sign."""
        signer = load_signer(self._directory / "keys" / "releases.pem")
        files = self.repository.metadata_files()
        newest = max(
            (name for name in files if name.endswith(".snapshot.json")),
            key=lambda name: int(name.removeprefix("metadata/").partition(".")[0]),
        )
        version = int(newest.removeprefix("metadata/").partition(".")[0])
        return sign_timestamp(
            self.repository.timestamp_version + _FORGED_AHEAD,
            meta_file(version, files[newest]),
            time.time,
            [signer],
        )


def _quiet(_what: str, _done: int) -> None:
    """Progress of reading files: it takes less time than to tell."""


def _untold(done: int, total: int, what: str) -> None:
    """Progress of publishing: the devices' own is what is shown."""
