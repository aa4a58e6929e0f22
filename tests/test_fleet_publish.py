"""Publishing when things are not as the publisher thinks: stale, rival, interrupted, tampered, foreign."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from driftseed.agent.config import AgentConfig
from driftseed.cli.client import Client, RemoteError
from driftseed.core import limits
from driftseed.core.errors import MetadataReplayed, WrongFleet
from driftseed.core.ids import Digest
from driftseed.core.lifecycle import State
from driftseed.node.transfer import ContentSettings
from driftseed.publish.send import publish_to_agent, publish_to_nodes
from driftseed.trust.repository import FleetRepository
from support_fleet import Fleet, fleet_in, local_api, settled, until
from support_fleet_peer import address_of


def quiet(done: int, total: int, what: str) -> None:
    """Nobody watches."""


async def test_a_stale_directory_cannot_publish_over_newer_metadata(tmp_path: Path) -> None:
    """The operator is told which is newer and what to do; devices keep what they have."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        shutil.copytree(tmp_path / "fleet", tmp_path / "stale")
        agent = await fleet.new_agent("agent")
        deployment = fleet.release_random("app", "1.0", 1000)
        await fleet.publish()
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        version = hub.node.keeper.ready
        stale = FleetRepository.open(tmp_path / "stale", lambda _: b"", time.time)
        with pytest.raises(
            MetadataReplayed, match="the fleet has snapshot 3, this directory only 1"
        ) as caught:
            await publish_to_nodes(stale, [fleet.hub_address(hub)], timeout_s=20, progress=quiet)
        assert "publish from the directory" in caught.value.hint
        assert hub.node.keeper.ready == version
        assert agent.journal.installed()["app"].version == "1.0"


async def test_a_timestamp_that_a_hub_renewed_meanwhile_is_overtaken(tmp_path: Path) -> None:
    """The publisher signs above it; publishing again without news changes nothing."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agent = await fleet.new_agent("agent")
        renewed = [await hub.renew(force=True) for _ in range(3)][-1]
        deployment = fleet.release_random("app", "1.0", 1000)
        result = await fleet.publish()
        assert renewed is not None
        assert result.timestamp_version > renewed
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        again = await fleet.publish()
        assert again.timestamp_version == result.timestamp_version
        assert agent.node.keeper.ready == result.timestamp_version


@pytest.mark.parametrize("ahead", [0, 2], ids=["of the same version", "of a newer version"])
async def test_rival_timestamps_of_hubs_that_were_apart_are_settled(tmp_path: Path, ahead: int) -> None:
    """One hub renewed the old snapshot, the other was published to: once they meet, the newer snapshot wins."""
    async with fleet_in(tmp_path) as fleet:
        one = await fleet.start_hub("one")
        agent = await fleet.new_agent("agent")
        await until(lambda: bool(agent.node.overlay.hubs()), "linked to its hub")
        other = await fleet.start_hub("other")
        fleet.hubs.remove(one)
        deployment = fleet.release_random("app", "1.0", 1000)
        published = await fleet.publish()
        fleet.hubs.append(one)
        while one.node.keeper.ready < published.timestamp_version + ahead:
            await one.renew(force=True)
        assert one.node.keeper.ready == published.timestamp_version + ahead
        await one.node.overlay.reach(address_of(other))
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        await until(
            lambda: len({member.node.keeper.ready for member in (one, other, agent)}) == 1,
            "all at one version",
        )
        assert one.node.keeper.ready > published.timestamp_version + ahead
        fleets = [member.node.fleet for member in (one, other, agent)]
        newest = agent.node.fleet
        assert newest is not None
        assert [each.snapshot_version for each in fleets if each is not None] == [newest.snapshot_version] * 3


async def test_publishing_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    """The publisher goes away in the middle of the content: what the hub has is not sent again."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub(content=ContentSettings(download_limit=4 * limits.MIB))
        agent = await fleet.new_agent("agent")
        size = 12 * limits.MIB
        deployment = fleet.release_random("app", "1.0", size)
        publishing = asyncio.create_task(fleet.publish())
        await until(
            lambda: any(each.progress > 0.4 for each in hub.node.contents.transfers()), "in the middle"
        )
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing
        (transfer,) = hub.node.contents.transfers()
        assert not transfer.arrived.done()
        await fleet.publish()
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        got = sum(
            carried
            for flow, carried in hub.node.contents.swarming.tunnels.carried.items()
            if flow.direction == "in"
        )
        assert got < 1.4 * size
        assert agent.install_root.joinpath("app.bin").stat().st_size == size


def two_variants(fleet: Fleet) -> tuple[str, dict[str, bytes]]:
    """A release for two architectures, deployed to all."""
    data = {arch: arch.encode() * 50_000 for arch in ("arm64", "amd64")}
    for arch, content in data.items():
        (fleet.directory / f"{arch}.bin").write_bytes(content)
    artifacts = [f"{fleet.directory}/{arch}.bin:arch={arch}" for arch in data]
    return fleet.release("app", "1.0", artifacts, meta={"path": "app.bin"}), data


async def test_publishing_through_an_agents_socket_without_any_hub(short_path: Path) -> None:
    """It installs its own variant, and keeps and serves the other one, which it has no use for."""
    async with fleet_in(short_path) as fleet:
        hub = await fleet.start_hub()
        one = await fleet.new_agent("one", inventory={"arch": "arm64"})
        two = await fleet.new_agent("two", inventory={"arch": "amd64"})
        await until(lambda: one.node.overlay.peer(two.identity.device) is not None, "neighbours")
        await until(lambda: two.node.keeper.ready > 0, "metadata is here")
        await fleet.stop(hub)
        deployment, data = two_variants(fleet)
        async with local_api(one) as api:
            result = await asyncio.to_thread(publish_to_agent, fleet.repository, api, progress=quiet)
        assert result.node == one.identity.device
        assert result.content_bytes == sum(map(len, data.values()))
        assert await settled([one, two], deployment) == [State.SUCCEEDED] * 2
        assert (one.install_root / "app.bin").read_bytes() == data["arm64"]
        assert (two.install_root / "app.bin").read_bytes() == data["amd64"]
        assert len(one.node.contents.store.digests()) == 2
        left = {path.name for path in (one.home.directory / "submissions").iterdir()}
        assert left <= {"trust"}, "nothing that was handed in is kept twice"


class Tampering:
    """A local API that something on the way changes."""

    def __init__(self, api: Client) -> None:
        self._api = api

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._api.request(method, path, body)

    def send_file(self, path: str, data: bytes | Path) -> dict[str, Any]:
        if isinstance(data, Path):
            data = data.read_bytes()[:-1] + b"!"
        return self._api.send_file(path, data)


async def test_tampered_content_and_foreign_metadata_are_refused_at_the_socket(short_path: Path) -> None:
    """Each for its reason; nothing is announced, kept or installed, and an honest publication follows."""
    async with fleet_in(short_path) as fleet:
        await fleet.start_hub()
        agent = await fleet.new_agent("one", inventory={"arch": "arm64"})
        await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
        version = agent.node.keeper.ready
        other = FleetRepository.create(
            short_path / "other", name="other", root_keys=1, threshold=1, passphrase=None, clock=time.time
        )
        deployment, data = two_variants(fleet)
        async with local_api(agent) as api:
            with pytest.raises(RemoteError) as tampered:
                await asyncio.to_thread(publish_to_agent, fleet.repository, Tampering(api), progress=quiet)
            assert (tampered.value.reason, tampered.value.exit_code) == ("content-mismatch", 34)
            with pytest.raises(WrongFleet):
                await asyncio.to_thread(publish_to_agent, other, api, progress=quiet)
            with pytest.raises(RemoteError) as foreign:
                await asyncio.to_thread(submit_anyway, api, other)
            assert (foreign.value.reason, foreign.value.exit_code) == ("metadata-unsigned", 31)
            assert agent.node.keeper.ready == version
            assert agent.node.contents.store.digests() == []
            assert agent.journal.update(deployment) is None
            await asyncio.to_thread(publish_to_agent, fleet.repository, api, progress=quiet)
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        assert (agent.install_root / "app.bin").read_bytes() == data["arm64"]


def submit_anyway(api: Client, repository: FleetRepository) -> None:
    """Hand in the metadata of whatever fleet: an earlier submission that failed does not stand in the way."""
    submission = api.request("POST", "/v1/submit")["submission"]
    for name, content in repository.files().items():
        api.send_file(f"/v1/submit/{submission}/files/{name}", content)
    try:
        api.request("POST", f"/v1/submit/{submission}/commit")
    finally:
        with contextlib.suppress(RemoteError):
            api.request("DELETE", f"/v1/submit/{submission}")


async def test_a_rollout_goes_on_between_peers_when_the_hub_dies_in_the_middle(tmp_path: Path) -> None:
    """One agent has all, the other a part when the hub goes: the rest comes from the first."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        fast = await fleet.new_agent("fast")
        slow = await fleet.new_agent("slow", config=AgentConfig(download_limit_bytes_s=2 * limits.MIB))
        await until(lambda: slow.node.overlay.peer(fast.identity.device) is not None, "neighbours")
        size = 8 * limits.MIB
        deployment = fleet.release_random("app", "1.0", size)
        await fleet.publish()
        assert await settled([fast], deployment) == [State.SUCCEEDED]
        (transfer,) = slow.node.contents.transfers()
        assert transfer.progress < 1
        await fleet.stop(hub)
        assert await settled([slow], deployment, 60.0) == [State.SUCCEEDED]
        assert (slow.install_root / "app.bin").read_bytes() == (tmp_path / "app-1.0.bin").read_bytes()
        sources = slow.node.contents.swarming.sources(Digest(transfer.artifact.sha256))
        assert any(name.startswith("peer/") for name in sources)
        assert sources.total() < 1.3 * size


async def test_a_neighbour_delivers_the_newest_report_of_a_device_that_meets_no_hub(tmp_path: Path) -> None:
    """A hub is met again only when the device is gone: it hears of it all the same, and what came last."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        lonely, carrier = await fleet.new_agents("lonely", "carrier")
        await until(lambda: lonely.node.overlay.peer(carrier.identity.device) is not None, "neighbours")
        await fleet.stop(hub)
        await until(lambda: not lonely.node.overlay.hubs(), "no hub")
        device = lonely.identity.device
        for board in ("one", "two", "three"):
            lonely.reconfigure(AgentConfig(inventory={"board": board}))
            known = carrier.reporter._book.newest(device)
            before = 0 if known is None else known.sequence
            await until(
                lambda: (new := carrier.reporter._book.newest(device)) is not None and new.sequence > before,  # noqa: B023 - awaited in the loop
                "the neighbour carries it",
            )
        newest = carrier.reporter._book.newest(device)
        assert newest is not None
        await fleet.stop(lonely)
        hub = await fleet.start_hub("another")
        await carrier.node.overlay.reach(fleet.hub_address(hub))

        async def delivered() -> bool:
            return (await hub.observer.sequences()).get(device) == newest.sequence

        await until(delivered, "delivered", 40.0)
        rows = {row.device: row for row in await hub.observer.devices({})}
        assert rows[device].inventory["board"] == "three"
        assert not rows[device].connected


async def test_publishing_ends_when_the_hub_holds_more_than_a_state_can_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state names the newest content only: the hub is asked about the rest, or publishing would never end."""
    monkeypatch.setattr(limits, "CONTENT_IDS_MAX", 2)
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        for number in range(4):
            payload = tmp_path / f"part-{number}"
            payload.write_bytes(bytes([number]) * 1000)
            fleet.release(f"part-{number}", "1", [str(payload)], meta={"path": f"part-{number}"})
        result = await fleet.publish()
        assert result.content_bytes == 4000
        assert len(hub.node.contents.store.digests()) == 4
