"""The attacks that TUF names (specification 1.5.2) on a whole running agent, by a member over a real connection.

The attacker is the only one that the agent can reach. Each test says what the device said of it, and that what it
runs, what it trusts and what it would serve to others are what they were. ``test_trust_attacks.py`` has the same
attacks, and more of them, on the verifier alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from driftseed.agent.daemon import Agent
from driftseed.core import limits, wire
from driftseed.core.lifecycle import State
from driftseed.core.model import (
    Deployment,
    ReleaseManifest,
    artifact_target,
    deployment_target,
    encode_document,
    manifest_target,
    torrent_target,
)
from driftseed.net.stream import Stream
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.keys import signer_for
from driftseed.trust.repository import FleetRepository
from driftseed.trust.tufapi import Root, TargetFile, Targets
from support_fleet import Fleet, fleet_in, settled, until
from support_fleet_peer import MadeUpPeer, closed, made_up_peer
from support_trust import DAY, Thief, make_artifact

EVIL = "e1" * 16
GOOD = b"good software " * 1000
ROLES = ("timestamp", "snapshot", "targets", "releases", "deployments", "fleet")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet and a member that runs app 1.0, made once; every test works on a copy."""
    directory = tmp_path_factory.mktemp("template")

    async def make() -> None:
        async with fleet_in(directory) as fleet:
            await fleet.start_hub()
            (agent,) = await fleet.new_agents("agent")
            payload = directory / "app.bin"
            payload.write_bytes(GOOD)
            deployment = fleet.release("app", "1.0", [str(payload)], meta={"path": "app.bin"})
            await fleet.publish()
            assert await settled([agent], deployment) == [State.SUCCEEDED]

    asyncio.run(make())
    return directory


@dataclass
class Stage:
    """The agent, whom it can reach, and what must not change."""

    fleet: Fleet
    agent: Agent
    peers: contextlib.AsyncExitStack
    directory: Path
    trusted: int = 0

    def __post_init__(self) -> None:
        """What is trusted now is what must not change from here on."""
        self.trusted = self.agent.node.keeper.ready
        self.timestamp = self.agent.node.keeper.trust.serve(TIMESTAMP_NAME)
        assert self.trusted
        assert self.timestamp is not None

    @property
    def repository(self) -> FleetRepository:
        return self.fleet.repository

    def refused(self, reason: str) -> int:
        return self.agent.node.ledger.refusal_counts[reason]

    async def attack(
        self, files: dict[str, bytes], answer: Callable[[wire.Message, Stream], object] | None = None
    ) -> MadeUpPeer:
        """A new member links to the agent, announces its timestamp, and serves its files."""

        async def serve(message: wire.Message, stream: Stream) -> None:
            if not isinstance(message, wire.GetFile):
                await stream.reset(1)
                return
            data = files.get(message.name)
            await stream.write_frame(wire.FileHead(length=-1 if data is None else len(data)))
            if data:
                await stream.write_raw(data)
            await stream.finish()

        peer = await self.peers.enter_async_context(made_up_peer(self.fleet, lifetime_s=400 * DAY))
        link = await peer.link(self.agent)
        peer.serve(link, answer or serve)  # type: ignore[arg-type]  # an Answer, or ours
        version = 2**40
        await link.control.write_frame(
            wire.State(timestamp_version=version, snapshot_version=version, ready=version)
        )
        await link.control.write_frame(wire.Notice(timestamp=files[TIMESTAMP_NAME]))
        return peer

    async def is_refused(self, files: dict[str, bytes], reason: str, words: str = "") -> None:
        before = self.refused(reason)
        peer = await self.attack(files)
        await until(lambda: self.refused(reason) > before, f"refused: {reason}; {self.said()}")
        assert any(
            words in each.detail and each.peer == peer.identity.device
            for each in self.agent.node.ledger.refusals
            if each.reason == reason
        ), self.said()
        self.assert_nothing_changed()
        await peer.close()
        await until(
            lambda: self.agent.node.overlay.peer(peer.identity.device) is None, "the attacker is gone"
        )

    def said(self) -> str:
        ledger = self.agent.node.ledger
        return f"{[(each.reason, each.detail) for each in ledger.refusals]}, {dict(ledger.drops)}"

    def assert_nothing_changed(self) -> None:
        keeper = self.agent.node.keeper
        assert keeper.ready == self.trusted
        assert keeper.trust.serve(TIMESTAMP_NAME) == self.timestamp
        self.assert_it_runs_what_it_ran()

    def assert_it_runs_what_it_ran(self) -> None:
        installed = {name: each.version for name, each in self.agent.journal.installed().items()}
        assert installed == {"app": "1.0"}
        assert {path.name: path.read_bytes() for path in self.agent.install_root.iterdir()} == {
            "app.bin": GOOD
        }
        assert [row.state for row in self.agent.journal.updates()] == [State.SUCCEEDED]

    async def look(self, version: int) -> None:
        """Wait until the agent trusts a newer state, which the attacker was able to sign."""
        await until(lambda: self.agent.node.keeper.ready == version, f"version {version}: {self.said()}")


@contextlib.asynccontextmanager
async def stage(
    directory: Path, template: Path, wall: Callable[[], float] = time.time
) -> AsyncIterator[Stage]:
    shutil.copytree(template, directory, dirs_exist_ok=True, symlinks=True)
    repository = FleetRepository.open(directory / "fleet", lambda _: b"", time.time)
    fleet = Fleet(directory, repository)
    async with contextlib.AsyncExitStack() as peers:
        try:
            agent = await fleet.start_agent("agent", wall=wall)
            yield Stage(fleet, agent, peers, directory)
        finally:
            await fleet.close()


def release_evil(thief: Thief, payload: Targets, version: str = "6.6.6") -> None:
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


def deploy_evil(thief: Thief, payload: Targets) -> None:
    artifact, _ = make_artifact(b"evil")
    manifest = ReleaseManifest(
        name="app",
        version="6.6.6",
        module="single-file",
        artifacts=[artifact],
        created="2027-01-15T08:00:00Z",
    )
    digest = hashlib.sha256(encode_document(manifest)).hexdigest()
    deployment = Deployment(id=EVIL, sequence=99, release="app", version="6.6.6", manifest_sha256=digest)
    thief.add_document(payload, deployment_target(EVIL), encode_document(deployment))


def everything_evil(thief: Thief) -> dict[str, bytes]:
    """A release and its deployment, signed as well as the thief can."""
    return thief.publish(
        {
            "releases": lambda payload: release_evil(thief, payload),
            "deployments": lambda payload: deploy_evil(thief, payload),
        }
    )


def deploy_next(stage: Stage) -> dict[str, bytes]:
    """The operators' own next state, which the agent does not know yet."""
    payload = stage.directory / "next.bin"
    payload.write_bytes(b"next")
    stage.fleet.release("app", "2.0", [str(payload)], meta={"path": "app.bin"})
    return stage.repository.files()


async def test_arbitrary_software(tmp_path: Path, template: Path) -> None:
    """Signed with keys that are no role's; and the right metadata with other documents."""
    async with stage(tmp_path, template) as on:
        no_keys = Thief(on.repository, sign_as=dict.fromkeys(ROLES, "enrolment"))
        await on.is_refused(everything_evil(no_keys), "metadata-unsigned")
        good = deploy_next(on)
        (name,) = [
            name for name in good if name.startswith("targets/releases/app/2.0/") and "release.json" in name
        ]
        await on.is_refused({**good, name: good[name].replace(b"2.0", b"6.6")}, "content-mismatch", name)


async def test_endless_data(tmp_path: Path, template: Path) -> None:
    """A file that is said to be longer than such a file may be is not read at all."""
    async with stage(tmp_path, template) as on:
        good = deploy_next(on)
        sent = asyncio.Event()

        async def endless(message: wire.Message, stream: Stream) -> None:
            if isinstance(message, wire.GetFile) and message.name.endswith(".snapshot.json"):
                await stream.write_frame(wire.FileHead(length=limits.METADATA_BYTES_MAX + 1))
                with contextlib.suppress(Exception):
                    while True:
                        await stream.write_raw(bytes(64 * limits.KIB))
                sent.set()
            else:
                await stream.write_frame(wire.FileHead(length=-1))
                await stream.finish()

        await on.attack(good, endless)
        await until(lambda: on.agent.node.ledger.drops["file-too-large"] == 1, f"counted; {on.said()}")
        async with asyncio.timeout(20):
            await sent.wait()
        on.assert_nothing_changed()


async def test_extraneous_dependencies(tmp_path: Path, template: Path) -> None:
    """The build system's key with the snapshot's and timestamp's: what no deployment names is not even fetched."""
    async with stage(tmp_path, template) as on:
        thief = Thief(on.repository)
        files = thief.publish({"releases": lambda payload: release_evil(thief, payload)})
        peer = await on.attack(files)
        await on.look(on.trusted + 1)
        on.assert_it_runs_what_it_ran()
        asked = {each.name for each in peer.asked if isinstance(each, wire.GetFile)}
        assert not [name for name in asked if "6.6.6" in name]
        assert not [each for each in peer.asked if isinstance(each, wire.FindContent)]


async def test_fast_forward_and_the_way_back(tmp_path: Path, template: Path) -> None:
    """A thief of the timestamp key uses up its numbers; a new root with another key takes the device back."""
    async with stage(tmp_path, template) as on:
        thief = Thief(on.repository)
        await on.attack(thief.stamp(thief.chain.timestamp.snapshot_meta, version=2**31))
        await on.look(2**31)
        on.assert_it_runs_what_it_ran()

        def replace(root: Root) -> None:
            for keyid in list(root.roles["timestamp"].keyids):
                root.revoke_key(keyid, "timestamp")
            root.add_key(signer_for(on.repository.private_key("enrolment")).public_key, "timestamp")

        operator = Thief(on.repository, sign_as={"timestamp": "enrolment"})
        operator.rotate_root(replace, ["root-1"])
        await on.attack(operator.stamp(operator.chain.timestamp.snapshot_meta))
        await on.look(on.trusted + 1)
        await until(lambda: on.agent.node.keeper.known == on.trusted + 1, "the thief's number is forgotten")
        newest = on.agent.node.newest_notice()
        assert newest == operator.files[TIMESTAMP_NAME], "neighbours are told of the new one"
        on.assert_it_runs_what_it_ran()


async def test_indefinite_freeze(tmp_path: Path, template: Path) -> None:
    """The same state is shown until its time is over: then the device says so, and goes on running."""
    async with stage(tmp_path, template, wall=lambda: time.time() + 31 * DAY) as on:
        assert on.timestamp is not None
        await on.is_refused(
            {**on.repository.files(), TIMESTAMP_NAME: on.timestamp},
            "metadata-expired",
            "this device's clock says",
        )


async def test_malicious_mirror(tmp_path: Path, template: Path) -> None:
    """It has the right names and nothing in them; whoever has the files is asked next."""
    async with stage(tmp_path, template) as on:
        good = deploy_next(on)
        garbage = {name: b"{}" if name != TIMESTAMP_NAME else data for name, data in good.items()}
        await on.is_refused(garbage, "metadata-unsigned")
        await on.attack(good)
        await on.look(on.trusted + 2)


async def test_mix_and_match(tmp_path: Path, template: Path) -> None:
    """Each file was really signed, and never together."""
    async with stage(tmp_path, template) as on:
        old = on.repository.files()
        good = deploy_next(on)
        for role in ("snapshot", "releases", "deployments"):
            newest = max(name for name in good if name.endswith(f".{role}.json"))
            before = max(name for name in old if name.endswith(f".{role}.json"))
            assert newest != before
            await on.is_refused({**good, newest: old[before]}, "metadata-unsigned", newest)


async def test_rollback(tmp_path: Path, template: Path) -> None:
    """An old timestamp as it was; and a thief of the timestamp key who signs an old snapshot anew."""
    async with stage(tmp_path, template) as on:
        old = Thief(on.repository)
        replayed = dict(old.files)
        on.repository.set_hubs([])
        honest = await on.attack(on.repository.files())
        await on.look(on.trusted + 1)
        await honest.close()
        on.__post_init__()
        await on.is_refused(replayed, "metadata-replayed", f"version {on.trusted} is trusted")
        rolled_back = old.stamp(old.chain.timestamp.snapshot_meta, version=on.trusted + 5)
        await on.is_refused(rolled_back, "metadata-replayed", "this device has trusted version")


async def test_slow_retrieval(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, never a pause: given up for its rate, counted, and another is asked."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 2.0)
    async with stage(tmp_path, template) as on:
        good = deploy_next(on)

        async def slow(message: wire.Message, stream: Stream) -> None:
            await stream.write_frame(wire.FileHead(length=1000))
            while True:
                await stream.write_raw(b" ")
                await asyncio.sleep(0.5)  # the attack itself

        await on.attack(good, slow)
        await until(lambda: on.agent.node.ledger.drops["file-slow"] > 0, f"counted; {on.said()}")
        on.assert_nothing_changed()
        await on.attack(good)
        await on.look(on.trusted + 2)


@pytest.mark.parametrize("key", [*ROLES, "enrolment"])
def test_every_role_has_a_key_of_its_own(template: Path, key: str) -> None:
    """What the next two tests take for granted."""
    repository = FleetRepository.open(template / "fleet", lambda _: b"", time.time)
    keys = {
        name: repository.private_key(name).public_key().public_bytes_raw() for name in (*ROLES, "enrolment")
    }
    assert sum(each == keys[key] for each in keys.values()) == 1


@pytest.mark.parametrize("stolen", ROLES)
async def test_compromise_of_one_key_installs_nothing(tmp_path: Path, template: Path, stolen: str) -> None:
    async with stage(tmp_path, template) as on:
        missing = [role for role in ROLES if role != stolen]
        thief = Thief(on.repository, sign_as=dict.fromkeys(missing, stolen))
        await on.is_refused(everything_evil(thief), "metadata-unsigned")


async def test_compromise_of_any_two_keys_installs_nothing(tmp_path: Path, template: Path) -> None:
    async with stage(tmp_path, template) as on:
        for pair in itertools.combinations(ROLES, 2):
            missing = [role for role in ROLES if role not in pair]
            thief = Thief(on.repository, sign_as=dict.fromkeys(missing, pair[0]))
            await on.is_refused(everything_evil(thief), "metadata-unsigned")


async def test_wrong_software(tmp_path: Path, template: Path) -> None:
    """Another file under the deployed release's name, by the build system's, snapshot's and timestamp's keys."""
    async with stage(tmp_path, template) as on:
        thief = Thief(on.repository)
        files = thief.publish({"releases": lambda payload: release_evil(thief, payload, "1.0")})
        await on.attack(files)
        await on.look(on.trusted + 1)
        await until(lambda: on.refused("roles-disagree") == 1, f"the roles disagree; {on.said()}")
        on.assert_it_runs_what_it_ran()


async def test_who_goes_on_is_cut_off(tmp_path: Path, template: Path) -> None:
    """Every notice that does not verify costs a signature check: a few, and the link is gone."""
    async with stage(tmp_path, template) as on:
        thief = Thief(on.repository, sign_as=dict.fromkeys(ROLES, "enrolment"))
        peer = await on.attack(everything_evil(thief))
        with contextlib.suppress(Exception):
            for number in range(20):
                files = thief.stamp(thief.chain.timestamp.snapshot_meta, version=100 + number)
                await peer.links[0].control.write_frame(wire.Notice(timestamp=files[TIMESTAMP_NAME]))
        assert "do not verify" in await closed(peer.links[0].connection)
        on.assert_nothing_changed()


async def test_two_stories_under_one_number_are_told_apart(tmp_path: Path, template: Path) -> None:
    """Whoever holds the timestamp key shows each device another state: two that meet compare, and say so."""
    async with stage(tmp_path, template) as on:
        thief = Thief(on.repository)
        await on.attack(thief.stamp(thief.chain.timestamp.snapshot_meta))
        await on.look(on.trusted + 1)
        on.__post_init__()
        other = Thief(on.repository).publish({"releases": lambda _: None})
        await on.is_refused(other, "metadata-equivocation", "tells two stories")
        assert on.agent.node.ledger.snapshot()["refusals"]["metadata-equivocation"] == 1, "as status shows it"
