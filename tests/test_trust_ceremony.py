"""Keys that are made, replaced and withdrawn: what devices make of it, also those that were away meanwhile."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.errors import Conflict, MetadataInvalid, Misuse, NotFound, TrustError
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.audit import audit, list_keys
from driftseed.trust.ceremony import FleetKeys
from driftseed.trust.chain import verify_chain
from driftseed.trust.device import FleetTrust
from driftseed.trust.keyring import NamedKey, name_key, public_pem, signer_of
from driftseed.trust.keys import create_key
from driftseed.trust.proposal import Proposal
from driftseed.trust.tufapi import Signer, Targets
from support_trust import DAY, FakeClock, Neighbour, Thief, add_release, make_fleet, tree

ROOT_ROLES = ("root", "targets", "snapshot", "timestamp")
DELEGATED_ROLES = ("releases", "deployments", "fleet")


def no_passphrase(_: str) -> bytes:
    return b""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three root keys of which two must sign, and a release that is deployed."""
    directory = tmp_path_factory.mktemp("template") / "fleet"
    repository = make_fleet(directory, FakeClock(), root_keys=3, threshold=2)
    add_release(repository, directory.parent)
    repository.add_deployment(deployment_id=uuid.uuid4().hex, release="app", version="1.0")
    return directory


class Place:
    """A fleet directory on one machine, and a device."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.clock = FakeClock()
        self.fleet = FleetKeys.open(scratch / "fleet", no_passphrase, self.clock)
        self.device = FleetTrust(scratch / "device", self.fleet.first_root, self.clock)
        self.take()

    def take(self) -> VerifiedFleet:
        """The device meets a neighbour that has everything."""
        return self.device.refresh(Neighbour(dict(self.fleet.files())))

    def key(self, name: str) -> NamedKey:
        """A new key file outside of the directory."""
        path = self.scratch / f"{name}.pem"
        create_key(path, None)
        return name_key(str(path), no_passphrase)

    def away(self, *names: str) -> list[NamedKey]:
        """Take key files to another machine."""
        found = []
        for name in names:
            moved = self.scratch / f"{name}.pem"
            shutil.move(self.scratch / "fleet" / "keys" / f"{name}.pem", moved)
            found.append(name_key(str(moved), no_passphrase))
        return found

    def fleet_key(self, named: NamedKey) -> Ed25519PrivateKey:
        assert named.ed25519 is not None
        return named.ed25519

    def keyids(self, role: str) -> list[str]:
        return [row.keyid for row in list_keys(self.fleet) if row.role == role]


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    shutil.copytree(template, tmp_path / "fleet")
    return Place(tmp_path)


# --- every role's keys are replaced ---------------------------------------------------------------


@pytest.mark.parametrize("role", [*ROOT_ROLES, *DELEGATED_ROLES, "enrolment"])
def test_every_role_gets_new_keys_and_devices_follow(place: Place, role: str) -> None:
    before = place.keyids(role)
    keys = [place.fleet.new_key(role, None) for _ in before]
    assert place.fleet.rotate(role, keys) is None
    assert not set(place.keyids(role)) & set(before)
    assert all(row.here for row in list_keys(place.fleet))
    assert audit(place.fleet, place.clock).problems == []
    fleet = place.take()
    assert len(fleet.deployments) == 1
    assert fleet.disagreements == ()
    # And the new keys are what signs from now on: nothing of the old is needed.
    for path in (place.scratch / "fleet" / "keys").iterdir():
        if path.name == f"{role}.pem" or (
            role == "root" and path.name in {"root-1.pem", "root-2.pem", "root-3.pem"}
        ):
            path.unlink()
    assert place.fleet.renew_root() is None
    place.fleet.renew("targets", *DELEGATED_ROLES)
    assert len(place.take().deployments) == 1


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", *DELEGATED_ROLES])
def test_a_stolen_key_is_worth_nothing_once_it_was_replaced(place: Place, role: str) -> None:
    stolen = place.fleet.private_key(role)
    assert place.fleet.rotate(role, [place.fleet.new_key(role, None)]) is None
    place.take()
    before = tree(place.scratch / "device")
    # The thief has the newest files, the stolen key, and for the worst case all the other keys as well.
    keys = place.fleet.keyring()
    thief = Thief(place.fleet)

    def sign_with_stolen(name: str) -> Ed25519PrivateKey:
        if name == role:
            return stolen
        (keyid,) = place.keyids(name)
        return keys.private(keyid, name)

    thief.repository = _KeysOf(sign_with_stolen)  # type: ignore[assignment]  # only its keys are asked for
    forged = "targets" if role in {"snapshot", "timestamp"} else role
    thief.publish({forged: lambda targets: targets.targets.clear()})
    with pytest.raises(MetadataInvalid):
        place.device.refresh(Neighbour(dict(thief.files)))
    assert {
        name: data for name, data in tree(place.scratch / "device").items() if name.startswith("files/")
    } == {name: data for name, data in before.items() if name.startswith("files/")}


class _KeysOf:
    def __init__(self, private_key: Callable[[str], Ed25519PrivateKey]) -> None:
        self.private_key = private_key


def test_one_key_is_added_and_another_withdrawn(place: Place) -> None:
    (old,) = place.keyids("releases")
    new = place.key("second")
    assert place.fleet.add("releases", new) is None
    assert place.keyids("releases") == [old, new.public.keyid]
    with pytest.raises(NotFound, match="0 keys of the role releases begin with nothing"):
        place.fleet.revoke("releases", "nothing")
    assert place.fleet.revoke("releases", old[:12]) is None
    assert place.keyids("releases") == [new.public.keyid]
    with pytest.raises(Misuse, match="would have 0 keys, and 1 must sign"):
        place.fleet.revoke("releases", new.public.keyid)
    third = place.key("third")
    assert place.fleet.revoke("releases", new.public.keyid, replacement=third) is None
    add_release(place.fleet, place.scratch, version="2.0")
    assert place.keyids("releases") == [third.public.keyid]
    assert len(place.take().deployments) == 1


def test_two_of_three_sign_for_a_role_that_asks_for_two(place: Place) -> None:
    keys = [place.key(f"builder-{number}") for number in range(3)]
    assert place.fleet.rotate("releases", keys, threshold=2) is None
    (place.scratch / "builder-1.pem").unlink()
    add_release(place.fleet, place.scratch, version="2.0")
    (place.scratch / "builder-2.pem").unlink()
    before = tree(place.scratch / "fleet")
    with pytest.raises(NotFound, match="1 keys of the role releases are here, 2 must sign"):
        add_release(place.fleet, place.scratch, version="3.0")
    assert tree(place.scratch / "fleet") == before
    place.take()
    with pytest.raises(Misuse, match="3 of 2 keys must sign"):
        place.fleet.rotate("deployments", [place.key("a"), place.key("b")], threshold=3)


# --- several people sign the root -----------------------------------------------------------------


def test_new_root_keys_need_the_old_and_the_new_thresholds(place: Place) -> None:
    ann, bob = place.away("root-1", "root-2")
    carl = place.key("carl")
    (place.scratch / "carl.pub").write_bytes(public_pem(place.fleet_key(carl)))
    carl_public = name_key(str(place.scratch / "carl.pub"), no_passphrase)
    assert carl_public.uri is None
    (place.scratch / "ann.pub").write_bytes(public_pem(place.fleet_key(ann)))
    ann_public = name_key(str(place.scratch / "ann.pub"), no_passphrase)
    # root-3 is here and signs at once, as one of the old keys.
    waiting = place.fleet.rotate("root", [ann_public, carl_public], threshold=2)
    assert waiting is not None
    assert [one.wanting for one in waiting.status()] == [1, 2]
    waiting = place.fleet.sign_proposal([bob])
    assert waiting is not None
    assert [one.wanting for one in waiting.status()] == [0, 2]
    with pytest.raises(Misuse, match="only the public half"):
        place.fleet.sign_proposal([carl_public])
    waiting = place.fleet.sign_proposal([carl])
    assert waiting is not None
    assert [one.missing for one in waiting.status() if one.wanting] == [(ann.public.keyid,)]
    assert place.take().root_version == 1
    assert place.fleet.sign_proposal([ann]) is None
    assert place.take().root_version == 2
    assert place.keyids("root") == [ann.public.keyid, carl.public.keyid]


def test_signers_on_other_machines_sign_copies_that_come_back_in_any_order(place: Place) -> None:
    ann, bob = place.away("root-1", "root-2")
    waiting = place.fleet.rotate("timestamp", [place.fleet.new_key("timestamp", None)])
    assert waiting is not None
    before = tree(place.scratch / "fleet")
    exported = waiting.encode()
    version = place.take().root_version

    anns, bobs = Proposal.decode(exported), Proposal.decode(exported)
    assert [one.wanting for one in anns.status()] == [1, 1]
    assert any("timestamp" in words and "is removed" in words for words in anns.changes())
    assert anns.sign(_signer(ann))
    assert not anns.sign(_signer(ann))
    bobs.sign(_signer(bob))
    with pytest.raises(Misuse, match="none of the root keys"):
        bobs.sign(_signer(place.key("eve")))

    forged = Proposal.decode(exported)
    forged.root.roles["timestamp"].threshold = 1
    forged.root.expires = forged.root.expires.replace(year=2099)
    with pytest.raises(Misuse, match="another root"):
        place.fleet.import_proposal(forged)
    assert tree(place.scratch / "fleet") == before

    assert place.fleet.import_proposal(Proposal.decode(bobs.encode())) == (1, None)
    assert place.take().root_version == version + 1
    with pytest.raises(NotFound, match="no new root waits"):
        place.fleet.import_proposal(anns)


def _signer(named: NamedKey) -> Signer:
    return signer_of(named, no_passphrase)


def test_releases_go_on_while_a_root_waits(place: Place) -> None:
    _, bob = place.away("root-1", "root-2")
    assert place.fleet.rotate("snapshot", [place.fleet.new_key("snapshot", None)]) is not None
    with pytest.raises(Conflict, match="another new root waits"):
        place.fleet.renew_root()
    add_release(place.fleet, place.scratch, version="2.0")
    assert place.fleet.sign_proposal([bob]) is None
    assert len(place.take().deployments) == 1
    assert len(place.fleet.releases()) == 2


def test_signatures_of_a_root_that_was_overtaken_do_nothing(place: Place) -> None:
    _, bob = place.away("root-1", "root-2")
    waiting = place.fleet.renew_root()
    assert waiting is not None
    stale = Proposal.decode(waiting.encode())
    place.fleet.cancel_proposal()
    assert place.fleet.renew_root(brought=[bob]) is None
    stale.sign(_signer(bob))
    with pytest.raises(NotFound):
        place.fleet.import_proposal(stale)
    assert place.take().root_version == 2


# --- a year away ------------------------------------------------------------------------------------


def test_a_device_that_was_away_for_a_year_walks_the_chain_of_roots(place: Place) -> None:
    """Every role was replaced twice meanwhile, and everything the device has is long expired."""
    for _ in range(2):
        place.clock.advance(180 * DAY)
        for role in (*ROOT_ROLES, *DELEGATED_ROLES, "enrolment"):
            keys = [place.fleet.new_key(role, None) for _ in place.keyids(role)]
            assert place.fleet.rotate(role, keys) is None
    place.clock.advance(20 * DAY)
    place.fleet.bump_timestamp()
    loaded = FleetTrust(place.scratch / "device", place.fleet.first_root, place.clock)
    old = loaded.load()
    assert old is not None
    assert old.expires < place.clock()
    fleet = loaded.refresh(Neighbour(dict(place.fleet.files())))
    assert fleet.root_version == 9  # four roles that the root names, twice
    assert fleet.expires > place.clock()
    assert len(fleet.deployments) == 1


def test_a_device_recovers_when_it_meets_fresh_metadata_and_never_goes_back(place: Place) -> None:
    old_files = dict(place.fleet.files())
    add_release(place.fleet, place.scratch, version="2.0")
    newest = place.take()
    place.clock.advance(2 * 365 * DAY - 5 * DAY)
    place.fleet.renew_root()
    place.fleet.renew("targets", *DELEGATED_ROLES)
    before = tree(place.scratch / "device")
    # Whoever still has what was signed two years ago does not take the device there.
    with pytest.raises(TrustError):
        place.device.refresh(Neighbour(old_files))
    assert {k: v for k, v in tree(place.scratch / "device").items() if k.startswith("files/")} == {
        k: v for k, v in before.items() if k.startswith("files/")
    }
    fleet = place.take()
    assert fleet.timestamp_version > newest.timestamp_version
    assert fleet.expires > place.clock()


# --- teams ------------------------------------------------------------------------------------------


def test_a_team_alone_signs_what_was_given_to_it(place: Place) -> None:
    key = place.key("camera")
    place.fleet.delegate("camera", ["releases/camera/*/*"], [key])
    add_release(place.fleet, place.scratch, name="camera", version="1.0")
    add_release(place.fleet, place.scratch, version="2.0")
    place.fleet.add_deployment(deployment_id=uuid.uuid4().hex, release="camera", version="1.0")
    chain = verify_chain(place.fleet.first_root, place.fleet.files().get)
    assert all(path.startswith("releases/camera/1.0/") for path in chain.delegated["camera"].targets)
    assert not any(path.startswith("releases/camera/") for path in chain.delegated["releases"].targets)
    fleet = place.take()
    assert {one.release.manifest.name for one in fleet.deployments} == {"app", "camera"}
    assert audit(place.fleet, place.clock).problems == []

    # Without its key nobody signs a camera release, and its key signs nothing else.
    (place.scratch / "camera.pem").unlink()
    with pytest.raises(NotFound, match="role camera"):
        add_release(place.fleet, place.scratch, name="camera", version="2.0")
    add_release(place.fleet, place.scratch, version="3.0")


@pytest.mark.parametrize(("thief_role", "release"), [("camera", "app"), ("releases", "camera")])
def test_a_role_that_signs_another_ones_releases_is_not_believed(
    place: Place, thief_role: str, release: str
) -> None:
    """Wrong software: the build system's thief makes a camera release, or the camera team's thief another one."""
    key = place.key("camera")
    place.fleet.delegate("camera", ["releases/camera/*/*"], [key])
    if release == "camera":
        add_release(place.fleet, place.scratch, name="camera", version="1.0")
        place.fleet.add_deployment(deployment_id=uuid.uuid4().hex, release="camera", version="1.0")
    shutil.copy(place.scratch / "camera.pem", place.scratch / "fleet" / "keys" / "camera.pem")
    thief = Thief(place.fleet)
    victim = "camera" if release == "camera" else "releases"
    moved = {
        path: target
        for path, target in thief.chain.delegated[victim].targets.items()
        if path.startswith(f"releases/{release}/")
    }
    assert moved

    def take_away(targets: Targets) -> None:
        for path in moved:
            del targets.targets[path]

    thief.publish({thief_role: lambda targets: targets.targets.update(moved), victim: take_away})
    fleet = place.device.refresh(Neighbour(dict(thief.files)))
    assert release not in {one.release.manifest.name for one in fleet.deployments}
    assert len(fleet.disagreements) == 1
    assert f"the role {victim} did not sign" in fleet.disagreements[0]


def test_a_team_that_is_gone_and_comes_back_goes_on_from_its_last_version(place: Place) -> None:
    key = place.key("camera")
    place.fleet.delegate("camera", ["releases/camera/*/*"], [key])
    add_release(place.fleet, place.scratch, name="camera", version="1.0")
    place.take()
    place.fleet.undelegate("camera")
    assert len(place.take().deployments) == 1
    place.fleet.delegate("camera", ["releases/camera/*/*"], [key])
    add_release(place.fleet, place.scratch, name="camera", version="1.0")
    assert len(place.take().deployments) == 1


@pytest.mark.parametrize(
    ("team", "paths", "said"),
    [
        ("releases", ["releases/x/*/*"], "cannot be a team's name"),
        ("../evil", ["releases/x/*/*"], "cannot be a team's name"),
        ("camera", [], "signs nothing"),
        ("camera", ["releases/*/*/*"], "cannot be a team's path"),
        ("camera", ["deployments/*"], "cannot be a team's path"),
        ("camera", ["releases/camera/*/release.json"], "cannot be a team's path"),
    ],
)
def test_a_team_gets_no_path_that_is_not_a_teams(
    place: Place, team: str, paths: list[str], said: str
) -> None:
    before = tree(place.scratch / "fleet")
    with pytest.raises(Misuse, match=said):
        place.fleet.delegate(team, paths, [place.key("camera")])
    assert tree(place.scratch / "fleet") == before


def test_a_team_does_not_take_over_what_another_role_has_signed(place: Place) -> None:
    with pytest.raises(Conflict, match="signed by another role already"):
        place.fleet.delegate("apps", ["releases/app/*/*"], [place.key("apps")])


# --- what an audit sees -------------------------------------------------------------------------------


def test_an_audit_says_what_is_expired_missing_and_changed(place: Place) -> None:
    assert audit(place.fleet, place.clock).problems == []
    (content,) = (place.scratch / "fleet" / "content").iterdir()
    content.write_bytes(b"something else")
    place.clock.advance(370 * DAY)
    found = audit(place.fleet, place.clock)
    assert any("is not the signed file" in each for each in found.problems)
    assert sum("expired at" in each for each in found.problems) == 6
    content.unlink()
    assert any("is not here" in each for each in audit(place.fleet, place.clock).warnings)


def test_an_audit_finds_deployments_on_which_the_roles_disagree(place: Place) -> None:
    thief = Thief(place.fleet)
    thief.publish({"releases": lambda targets: targets.targets.clear()})
    for name, data in thief.files.items():
        (place.scratch / "fleet" / name).write_bytes(data)
    found = audit(FleetKeys.open(place.scratch / "fleet", no_passphrase, place.clock), place.clock)
    assert any("did not sign" in each for each in found.problems)
