"""The attacks that TUF names (specification 1.5.2) and thieves of single keys, against a device.

Each test asserts the error a person sees, and that what was trusted before is still what is on disk.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from driftseed.core import limits
from driftseed.core.errors import (
    ContentMismatch,
    MetadataExpired,
    MetadataInvalid,
    MetadataReplayed,
    PeerMisbehaved,
)
from driftseed.core.model import (
    Deployment,
    ReleaseManifest,
    artifact_target,
    deployment_target,
    encode_document,
    manifest_target,
    torrent_target,
)
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.chain import TIMESTAMP_NAME, metadata_name
from driftseed.trust.device import FleetTrust
from driftseed.trust.keys import signer_for
from driftseed.trust.repository import FleetRepository
from driftseed.trust.tufapi import Root, Snapshot, TargetFile, Targets
from support_trust import DAY, FakeClock, Neighbour, Thief, add_release, make_artifact, make_fleet

ID_1 = "11" * 16
ID_2 = "22" * 16
ID_3 = "33" * 16


class Battlefield:
    """A fleet, and a device that trusts its state: release app 1.0 is deployed."""

    def __init__(self, scratch: Path) -> None:
        self.clock = FakeClock()
        self.scratch = scratch
        self.repository = FleetRepository.open(scratch / "fleet", lambda _: b"", self.clock)
        self.manifest = self.repository.release("app", "1.0").manifest
        self.directory = scratch / "device"
        self.trust_honestly()

    def restart(self) -> FleetTrust:
        return FleetTrust(self.directory, self.repository.first_root, self.clock)

    def trust_honestly(self) -> None:
        """The device learns the repository's newest state, which is then the one to be defended."""
        self.old_files = self.repository.files()
        self.device = self.restart()
        self.old = self.offer(self.old_files)
        self.served = {name: data for name in self.old_files if (data := self.device.serve(name)) is not None}

    def offer(self, files: dict[str, bytes]) -> VerifiedFleet:
        return self.device.refresh(Neighbour(dict(files)))

    def deploy_next(self) -> None:
        """Version 2.0, which the device does not know yet."""
        add_release(self.repository, self.scratch, version="2.0")
        self.repository.add_deployment(deployment_id=ID_2, release="app", version="2.0")

    def assert_nothing_changed(self) -> None:
        """In memory, on disk, and for neighbours."""
        restarted = self.restart()
        assert restarted.load() == self.old
        assert TIMESTAMP_NAME in self.served
        for device in (self.device, restarted):
            for name, data in self.served.items():
                assert device.serve(name) == data


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: fsync is slow, copies are not."""
    scratch = tmp_path_factory.mktemp("template")
    repository = make_fleet(scratch / "fleet", FakeClock(), root_keys=3, threshold=2)
    add_release(repository, scratch)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    return scratch


@pytest.fixture
def field(tmp_path: Path, template: Path) -> Battlefield:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return Battlefield(tmp_path)


def deploy_again(field: Battlefield) -> None:
    """Version 2.0 reaches the device honestly."""
    field.deploy_next()
    field.trust_honestly()


# --- rollback -------------------------------------------------------------------------------------------


def test_rollback_by_a_replayed_timestamp(field: Battlefield) -> None:
    replayed = field.old_files
    deploy_again(field)
    with pytest.raises(MetadataReplayed) as caught:
        field.offer(replayed)
    assert caught.value.message == (
        "metadata/timestamp.json is version 3; this device has trusted version 5 already"
    )
    assert caught.value.reason == "metadata-replayed"
    field.assert_nothing_changed()


def test_rollback_of_the_snapshot_by_a_thief_of_the_timestamp_key(field: Battlefield) -> None:
    older = Thief(field.repository)
    deploy_again(field)
    forged = older.stamp(older.chain.timestamp.snapshot_meta, version=99)
    with pytest.raises(MetadataReplayed) as caught:
        field.offer(forged)
    assert caught.value.message == (
        "the snapshot that metadata/timestamp.json names is version 3; "
        "this device has trusted version 5 already"
    )
    field.assert_nothing_changed()


def test_rollback_of_one_role_by_a_thief_of_the_snapshot_and_timestamp_keys(field: Battlefield) -> None:
    older = Thief(field.repository)
    deploy_again(field)
    thief = Thief(field.repository)
    forged = thief.publish(
        {},
        snapshot_changes=lambda snapshot: snapshot.meta.update(
            {"deployments.json": older.chain.snapshot.meta["deployments.json"]}
        ),
    )
    with pytest.raises(MetadataReplayed) as caught:
        field.offer({**older.files, **forged})
    assert caught.value.message == (
        "deployments.json that metadata/6.snapshot.json names is version 2; "
        "this device has trusted version 3 already"
    )
    field.assert_nothing_changed()


def test_removal_of_a_role_from_the_snapshot(field: Battlefield) -> None:
    forged = Thief(field.repository).publish(
        {}, snapshot_changes=lambda snapshot: snapshot.meta.__delitem__("deployments.json")
    )
    with pytest.raises(MetadataInvalid, match=r"deployments\.json"):
        field.offer(forged)
    field.assert_nothing_changed()


def test_rollback_after_the_cache_was_damaged(field: Battlefield) -> None:
    replayed = field.old_files
    deploy_again(field)
    for path in [field.directory / "index.json", *(field.directory / "tuf").glob("*.json")]:
        path.unlink()
    with pytest.raises(MetadataReplayed, match="is version 3; this device has trusted version 5 already"):
        field.restart().refresh(Neighbour(replayed))
    field.trust_honestly()
    field.assert_nothing_changed()


# --- freeze ---------------------------------------------------------------------------------------------


def test_freeze_at_an_expired_timestamp(field: Battlefield) -> None:
    field.clock.advance(30 * DAY)
    with pytest.raises(MetadataExpired) as caught:
        field.offer(field.old_files)
    assert caught.value.message == (
        "timestamp 3 expired at 2027-02-14T08:00:00Z; this device's clock says 2027-02-14T08:00:00Z"
    )
    assert "check this device's clock" in caught.value.hint
    assert caught.value.reason == "metadata-expired"
    field.assert_nothing_changed()


@pytest.mark.parametrize(
    ("days", "what"),
    [(366, "snapshot 3"), (731, "root 1")],
)
def test_freeze_behind_a_timestamp_that_is_renewed(field: Battlefield, days: int, what: str) -> None:
    field.clock.advance(days * DAY)
    field.repository.bump_timestamp()
    with pytest.raises(MetadataExpired, match=f"^{what} expired at"):
        field.offer(field.repository.files())
    field.assert_nothing_changed()


@pytest.mark.parametrize("role", ["targets", "releases", "deployments", "fleet"])
def test_freeze_of_one_role(field: Battlefield, role: str) -> None:
    def expire(payload: Targets) -> None:
        payload.expires -= timedelta(days=365)

    thief = Thief(field.repository)
    forged = thief.publish({role: expire})
    with pytest.raises(MetadataExpired, match=rf"^metadata/\d\.{role}\.json expired at 2027-01-15T08:00:00Z"):
        field.offer(forged)
    field.assert_nothing_changed()


def test_a_clock_far_behind_trusts_what_is_signed_and_one_far_ahead_names_itself(field: Battlefield) -> None:
    field.clock.now = 0.0
    assert field.offer(field.old_files) == field.old
    field.clock.now = 4e9
    with pytest.raises(MetadataExpired, match="this device's clock says 2096-"):
        field.offer(field.old_files)
    field.assert_nothing_changed()


# --- mix and match, arbitrary software, endless data ----------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "targets", "releases", "deployments", "fleet"])
def test_mix_and_match_of_files_from_different_states(field: Battlefield, role: str) -> None:
    field.deploy_next()
    field.repository.set_hubs([])
    field.repository.renew("targets")
    mixed = field.repository.files()
    newest = max(name for name in mixed if name.endswith(f".{role}.json"))
    old = max(name for name in field.old_files if name.endswith(f".{role}.json"))
    assert newest != old
    mixed[newest] = field.old_files[old]
    with pytest.raises(MetadataInvalid, match=f"{newest} does not verify"):
        field.offer(mixed)
    field.assert_nothing_changed()


def test_arbitrary_software_by_a_swapped_document_or_torrent(field: Battlefield) -> None:
    field.deploy_next()
    good = field.repository.files()
    for name in good:
        if name.startswith("targets/") and name not in field.old_files:
            for swapped in (good[name].replace(b"2", b"3"), good[name] + b" ", b""):
                with pytest.raises((ContentMismatch, PeerMisbehaved)) as caught:
                    field.offer({**good, name: swapped})
                assert name in caught.value.message
            field.assert_nothing_changed()
    assert field.offer(good).deployments[0].deployment.version == "2.0"


def test_endless_data_instead_of_any_file(field: Battlefield) -> None:
    field.deploy_next()
    good = field.repository.files()
    endless = b" " * (limits.METADATA_BYTES_MAX + 1)
    new = [name for name in good if good[name] != field.old_files.get(name)]
    for name in [*new, "metadata/2.root.json"]:
        with pytest.raises(PeerMisbehaved) as caught:
            field.offer({**good, name: endless})
        assert caught.value.kind == "file-too-large"
        assert caught.value.message.startswith(f"{name} came with {len(endless)} bytes where ")
        field.assert_nothing_changed()
    assert field.offer(good).deployments[0].deployment.version == "2.0"


# --- wrong keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_keyid", [False, True], ids=["own-id", "right-id"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "deployments", "fleet"])
def test_metadata_signed_by_the_build_key_alone(field: Battlefield, role: str, *, keep_keyid: bool) -> None:
    thief = Thief(field.repository, sign_as={role: "releases"}, keep_keyid=keep_keyid)
    changed = role if role in {"targets", "deployments", "fleet"} else "releases"
    forged = thief.publish({changed: lambda _: None})
    with pytest.raises(MetadataInvalid) as caught:
        field.offer(forged)
    assert caught.value.reason == "metadata-unsigned"
    assert f"{role} was signed by 0/1 keys" in caught.value.message
    field.assert_nothing_changed()


def test_unsigned_metadata_is_no_better_than_falsely_signed(field: Battlefield) -> None:
    forged = Thief(field.repository).publish({"releases": lambda _: None})
    document = msgspec.json.decode(forged[TIMESTAMP_NAME])
    document["signatures"] = []
    forged[TIMESTAMP_NAME] = msgspec.json.encode(document)
    with pytest.raises(MetadataInvalid, match="timestamp was signed by 0/1 keys"):
        field.offer(forged)
    field.assert_nothing_changed()


def test_one_signature_twice_is_not_a_threshold_of_two(field: Battlefield) -> None:
    files = field.repository.files()
    thief = Thief(field.repository)
    files = thief.rotate_root(lambda _: None, ["root-1"])
    document = msgspec.json.decode(files["metadata/2.root.json"])
    document["signatures"] *= 2
    files["metadata/2.root.json"] = msgspec.json.encode(document)
    with pytest.raises(MetadataInvalid):
        field.offer(files)
    field.assert_nothing_changed()


# --- thieves of one of the two keys ---------------------------------------------------------------------


def evil_release(thief: Thief, payload: Targets, version: str) -> ReleaseManifest:
    """Complete, well-formed and well-signed by the role that signs it."""
    artifact, torrent = make_artifact(b"evil")
    manifest = ReleaseManifest(
        name="app",
        version=version,
        module="single-file",
        artifacts=[artifact],
        created="2027-01-15T08:00:00Z",
    )
    path = artifact_target("app", version, artifact)
    payload.targets[path] = TargetFile(artifact.length, {"sha256": artifact.sha256}, path)
    thief.add_document(payload, torrent_target("app", version, artifact), torrent)
    thief.add_document(payload, manifest_target("app", version), encode_document(manifest))
    return manifest


def release_evil(thief: Thief, payload: Targets, version: str) -> None:
    evil_release(thief, payload, version)


def digest(manifest: ReleaseManifest) -> str:
    return hashlib.sha256(encode_document(manifest)).hexdigest()


def test_the_build_systems_keys_alone_install_nothing_new(field: Battlefield) -> None:
    thief = Thief(field.repository)
    forged = thief.publish({"releases": lambda payload: release_evil(thief, payload, "6.6.6")})
    fleet = field.offer(forged)
    assert [one.deployment.version for one in fleet.deployments] == ["1.0"]
    assert fleet.disagreements == ()


def test_the_build_systems_keys_alone_cannot_change_what_is_deployed(field: Battlefield) -> None:
    thief = Thief(field.repository)
    forged = thief.publish({"releases": lambda payload: release_evil(thief, payload, "1.0")})
    fleet = field.offer(forged)
    assert fleet.deployments == ()
    (words,) = fleet.disagreements
    assert words.startswith(f"deployments/{ID_1}.json: names release app 1.0 with manifest ")
    assert field.old.deployments[0].release.digest[:16] in words


def test_the_build_systems_role_cannot_sign_deployments(field: Battlefield) -> None:
    thief = Thief(field.repository)

    def deploy_from_releases(payload: Targets) -> None:
        manifest = evil_release(thief, payload, "6.6.6")
        deployment = Deployment(
            id=ID_2, sequence=99, release="app", version="6.6.6", manifest_sha256=digest(manifest)
        )
        thief.add_document(payload, deployment_target(ID_2), encode_document(deployment))

    fleet = field.offer(thief.publish({"releases": deploy_from_releases}))
    assert [one.deployment.id for one in fleet.deployments] == [ID_1]


def test_the_operators_keys_alone_install_nothing_that_was_not_released(field: Battlefield) -> None:
    thief = Thief(field.repository)

    def deploy_own(payload: Targets) -> None:
        manifest = evil_release(thief, payload, "6.6.6")
        deployment = Deployment(
            id=ID_2, sequence=99, release="app", version="6.6.6", manifest_sha256=digest(manifest)
        )
        thief.add_document(payload, deployment_target(ID_2), encode_document(deployment))

    fleet = field.offer(thief.publish({"deployments": deploy_own}))
    assert [one.deployment.id for one in fleet.deployments] == [ID_1]
    # Of what the thief put in, its deployment is named, and the release that it signed itself counts for nothing.
    assert f"deployments/{ID_2}.json: the role releases did not sign releases/app/6.6.6/release.json" in (
        fleet.disagreements
    )


def test_a_deployment_of_another_manifest_is_refused_by_itself(field: Battlefield) -> None:
    thief = Thief(field.repository)

    def swap(payload: Targets) -> None:
        deployment = Deployment(id=ID_2, sequence=99, release="app", version="1.0", manifest_sha256="ee" * 32)
        thief.add_document(payload, deployment_target(ID_2), encode_document(deployment))

    fleet = field.offer(thief.publish({"deployments": swap}))
    assert [one.deployment.id for one in fleet.deployments] == [ID_1]
    assert fleet.disagreements == (
        (
            f"deployments/{ID_2}.json: names release app 1.0 with manifest {'ee' * 8}; "
            f"the role releases signed {field.old.deployments[0].release.digest[:16]}"
        ),
    )


# --- signed nonsense ------------------------------------------------------------------------------------


def _raw(data: bytes) -> Callable[[Thief, Targets], None]:
    return lambda thief, payload: thief.add_document(payload, deployment_target(ID_2), data)


def _only_sha512(thief: Thief, payload: Targets) -> None:
    path = deployment_target(ID_2)
    payload.targets[path] = TargetFile.from_data(path, b"{}", ["sha512"])


def _wrong_id(thief: Thief, payload: Targets) -> None:
    document = Deployment(id=ID_3, sequence=9, release="app", version="1.0", manifest_sha256="ee" * 32)
    thief.add_document(payload, deployment_target(ID_2), encode_document(document))


@pytest.mark.parametrize(
    ("sign_nonsense", "words"),
    [
        (_raw(b"not json"), "is signed but malformed"),
        (_raw(b"{}"), "is signed but malformed"),
        (_raw(b"[" * 100_000), "is signed but malformed"),
        (_raw(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "is signed but malformed"),
        (_raw(b" " * (limits.DOCUMENT_BYTES_MAX + 1)), f"has {limits.DOCUMENT_BYTES_MAX + 1} bytes"),
        (_only_sha512, "is signed without a SHA-256"),
        (_wrong_id, f"the document is deployment {ID_3}"),
    ],
    ids=["text", "empty", "bomb", "hidden-bomb", "huge", "sha512", "other-id"],
)
def test_a_malformed_deployment_does_not_block_the_others(
    field: Battlefield, sign_nonsense: Callable[[Thief, Targets], None], words: str
) -> None:
    thief = Thief(field.repository)
    fleet = field.offer(thief.publish({"deployments": lambda payload: sign_nonsense(thief, payload)}))
    assert [one.deployment.id for one in fleet.deployments] == [ID_1]
    (disagreement,) = fleet.disagreements
    assert disagreement.startswith(f"deployments/{ID_2}.json: ")
    assert words in disagreement
    assert field.restart().load() == fleet


def _drop_torrent(field: Battlefield, payload: Targets) -> None:
    del payload.targets[torrent_target("app", "1.0", field.manifest.artifacts[0])]


def _other_torrent(field: Battlefield, payload: Targets) -> None:
    path = torrent_target("app", "1.0", field.manifest.artifacts[0])
    payload.targets[path] = TargetFile(1, {"sha256": "dd" * 32}, path)


def _drop_artifact(field: Battlefield, payload: Targets) -> None:
    del payload.targets[artifact_target("app", "1.0", field.manifest.artifacts[0])]


def _longer_artifact(field: Battlefield, payload: Targets) -> None:
    artifact = field.manifest.artifacts[0]
    path = artifact_target("app", "1.0", artifact)
    payload.targets[path] = TargetFile(artifact.length + 1, {"sha256": artifact.sha256}, path)


def _other_artifact(field: Battlefield, payload: Targets) -> None:
    artifact = field.manifest.artifacts[0]
    path = artifact_target("app", "1.0", artifact)
    payload.targets[path] = TargetFile(artifact.length, {"sha256": "dd" * 32}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop_torrent, "did not sign"),
        (_other_torrent, "different hashes"),
        (_drop_artifact, "did not sign"),
        (_longer_artifact, "different lengths or hashes"),
        (_other_artifact, "different lengths or hashes"),
    ],
)
def test_a_manifest_that_disagrees_with_its_own_role_is_not_installed(
    field: Battlefield, damage: Callable[[Battlefield, Targets], None], words: str
) -> None:
    thief = Thief(field.repository)
    fleet = field.offer(thief.publish({"releases": lambda payload: damage(field, payload)}))
    assert fleet.deployments == ()
    (disagreement,) = fleet.disagreements
    assert disagreement.startswith(f"deployments/{ID_1}.json: ")
    assert words in disagreement


def test_the_manifest_of_another_version_under_this_versions_name(field: Battlefield) -> None:
    thief = Thief(field.repository)

    def rename(payload: Targets) -> None:
        other = msgspec.structs.replace(field.manifest, version="0.9")
        thief.add_document(payload, manifest_target("app", "1.0"), encode_document(other))

    fleet = field.offer(thief.publish({"releases": rename}))
    assert fleet.deployments == ()
    assert "is the manifest of app 0.9" in fleet.disagreements[0]


def test_hubs_that_are_malformed_do_not_block_updates(field: Battlefield) -> None:
    thief = Thief(field.repository)
    fleet = field.offer(
        thief.publish({"fleet": lambda payload: thief.add_document(payload, "fleet/hubs.json", b"{!")})
    )
    assert fleet.hubs == ()
    assert len(fleet.deployments) == 1
    assert fleet.disagreements[0].startswith("fleet/hubs.json: ")


def test_metadata_without_enrolment_keys_is_invalid(field: Battlefield) -> None:
    forged = Thief(field.repository).publish(
        {"fleet": lambda payload: payload.targets.__delitem__("fleet/enrolment.json")}
    )
    with pytest.raises(MetadataInvalid, match="does not say who enrols"):
        field.offer(forged)
    field.assert_nothing_changed()


def test_deployments_looked_at_are_bounded(field: Battlefield) -> None:
    thief = Thief(field.repository)

    def flood(payload: Targets) -> None:
        for number in range(limits.DEPLOYMENTS_MAX + 10):
            thief.add_document(payload, deployment_target(f"{number:032x}"), b"{}")

    forged = thief.publish({"deployments": flood})
    neighbour = Neighbour(forged)
    fleet = field.device.refresh(neighbour)
    assert len([name for name in neighbour.asked if "/deployments/" in name]) <= limits.DEPLOYMENTS_MAX
    assert len(fleet.disagreements) == limits.DEPLOYMENTS_MAX + 1
    assert fleet.disagreements[0] == "deployments: 1035 are signed, only 1024 are looked at"


# --- roots ----------------------------------------------------------------------------------------------


def replace_key(repository: FleetRepository, role: str, new: str) -> Callable[[Root], None]:
    """Take a role's keys away and give it another key file's."""

    def change(root: Root) -> None:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(signer_for(repository.private_key(new)).public_key, role)

    return change


def test_a_chain_of_new_roots_is_followed(field: Battlefield) -> None:
    thief = Thief(field.repository, sign_as={"timestamp": "enrolment"})
    for _ in range(3):
        thief.rotate_root(lambda _: None, ["root-1", "root-3"])
    thief.rotate_root(replace_key(field.repository, "timestamp", "enrolment"), ["root-2", "root-3"])
    forged = thief.stamp(thief.chain.timestamp.snapshot_meta)
    with pytest.raises(MetadataInvalid):
        field.device.check_notice(forged[TIMESTAMP_NAME])
    fleet = field.offer(forged)
    assert (fleet.root_version, fleet.timestamp_version) == (5, 4)
    assert field.device.check_notice(forged[TIMESTAMP_NAME]).version == 4
    with pytest.raises(MetadataInvalid):
        field.device.check_notice(field.old_files[TIMESTAMP_NAME])
    restarted = field.restart()
    assert restarted.load() == fleet
    assert restarted.check_notice(forged[TIMESTAMP_NAME]).version == 4
    for version in range(1, 6):
        assert restarted.serve(metadata_name("root", version)) is not None


@pytest.mark.parametrize(
    "signed_by",
    [[], ["root-1"], ["root-2"], ["releases", "deployments"]],
    ids=lambda keys: "+".join(keys) or "none",
)
def test_a_root_below_its_threshold_is_refused(field: Battlefield, signed_by: list[str]) -> None:
    forged = Thief(field.repository).rotate_root(lambda _: None, signed_by)
    with pytest.raises(MetadataInvalid, match=r"root was signed by [01]/2 keys"):
        field.offer(forged)
    field.assert_nothing_changed()


def test_a_root_that_only_its_own_new_keys_signed_is_refused(field: Battlefield) -> None:
    def seize(root: Root) -> None:
        replace_key(field.repository, "root", "releases")(root)
        root.roles["root"].threshold = 1

    with pytest.raises(MetadataInvalid, match="root was signed by 0/2 keys"):
        field.offer(Thief(field.repository).rotate_root(seize, ["releases"]))
    field.assert_nothing_changed()


def test_a_root_that_skips_a_version_is_refused(field: Battlefield) -> None:
    files = Thief(field.repository).rotate_root(
        lambda root: setattr(root, "version", 2), ["root-1", "root-2"]
    )
    files["metadata/2.root.json"] = files.pop("metadata/3.root.json")
    with pytest.raises(MetadataInvalid, match=r"metadata/2\.root\.json holds another version"):
        field.offer(files)
    field.assert_nothing_changed()


def test_a_fast_forward_attack_is_recovered_from_by_a_new_timestamp_key(field: Battlefield) -> None:
    thief = Thief(field.repository)
    field.offer(thief.stamp(thief.chain.timestamp.snapshot_meta, version=2**53))
    with pytest.raises(
        MetadataReplayed, match=f"is version 3; this device has trusted version {2**53} already"
    ):
        field.offer(field.old_files)
    owner = Thief(field.repository, sign_as={"timestamp": "enrolment"})
    owner.rotate_root(replace_key(field.repository, "timestamp", "enrolment"), ["root-1", "root-2"])
    fleet = field.offer(owner.stamp(owner.chain.timestamp.snapshot_meta))
    assert (fleet.root_version, fleet.timestamp_version) == (2, 4)
    assert fleet.deployments == field.old.deployments
    # The floor holds again, under the new key.
    replayed = dict(owner.files)
    field.offer(owner.stamp(owner.chain.timestamp.snapshot_meta, version=7))
    with pytest.raises(MetadataReplayed, match="is version 4; this device has trusted version 7 already"):
        field.offer(replayed)


def test_a_new_root_is_known_though_the_rest_of_the_refresh_failed(field: Battlefield) -> None:
    owner = Thief(field.repository, sign_as={"timestamp": "enrolment"})
    owner.rotate_root(replace_key(field.repository, "timestamp", "enrolment"), ["root-1", "root-2"])
    files = owner.stamp(owner.chain.timestamp.snapshot_meta)
    with pytest.raises(MetadataInvalid):
        field.offer({**files, TIMESTAMP_NAME: b"{}"})
    assert field.device.check_notice(files[TIMESTAMP_NAME]).version == 4


def test_snapshot_type_confusion(field: Battlefield) -> None:
    """A role's file where the snapshot should be: right signature, wrong type."""
    thief = Thief(field.repository)
    snapshot_meta = thief.chain.snapshot.meta["releases.json"]
    forged = thief.stamp(type(snapshot_meta)(9, snapshot_meta.length, snapshot_meta.hashes))
    forged["metadata/9.snapshot.json"] = forged[metadata_name("releases", snapshot_meta.version)]
    with pytest.raises(MetadataInvalid, match=f"Expected '{Snapshot.type}', got 'targets'"):
        field.offer(forged)
    field.assert_nothing_changed()
