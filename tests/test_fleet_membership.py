"""Members that are expelled, relabelled, renewed: in a fleet of real nodes, by what operators sign."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from driftseed.agent.daemon import Agent
from driftseed.agent.join import join
from driftseed.core.errors import MemberRevoked, Misuse, WouldOverwrite
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.tickets import decode_ticket
from driftseed.hub.daemon import Hub, HubSettings
from driftseed.node.home import Home
from driftseed.node.transfer import ContentSettings
from driftseed.publish import devices
from driftseed.trust.admission import (
    TicketSecret,
    countersign,
    decode_part,
    receipt_validity,
)
from driftseed.trust.hubkit import export_hub_kit, parse_hub_kit
from driftseed.trust.membership import issue_certificate
from support_fleet import Fleet, fleet_in, settled, state_of, until

YEAR = 365 * 86400.0


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_in(tmp_path) as made:
        yield made


def linked(agent: Agent | Hub) -> set[DeviceId]:
    return {peer.device for peer in agent.node.overlay.peers()}


def revoke(fleet: Fleet, *which: DeviceId, since: float = 0.0) -> None:
    devices.revoke(fleet.repository, which, now=time.time(), since=since, reason="stolen")


async def test_an_expelled_device_loses_every_link_and_gets_nothing_more(fleet: Fleet) -> None:
    hub = await fleet.start_hub()
    good, bad = await fleet.new_agent("good"), await fleet.new_agent("bad")
    everyone = {hub.identity.device, good.identity.device, bad.identity.device}
    await until(lambda: linked(hub) | {hub.identity.device} == everyone, "both are linked to the hub")
    revoke(fleet, bad.identity.device)
    began = time.monotonic()
    await fleet.publish()
    await until(lambda: bad.identity.device not in linked(hub) | linked(good), "the expelled one is cut off")
    assert time.monotonic() - began < 60
    await until(lambda: good.identity.device in linked(hub), "the other stays")
    assert not hub.is_member(bad.identity.device)
    await until(lambda: hub.node.ledger.refusal_counts["member-revoked"] > 0, "counted")

    # Nothing new reaches it, though it goes on trying.
    path = fleet.directory / "app"
    path.write_bytes(b"2" * 1000)
    deployment = fleet.release("app", "1.0", [str(path)], meta={"path": "app"})
    await fleet.publish()
    assert await settled([good], deployment) == [State.SUCCEEDED]
    assert state_of(bad, deployment) is None
    refused = hub.node.ledger.refusal_counts["member-revoked"]
    bad.node.book.forgive()
    bad.node.overlay.look_around()
    await until(lambda: hub.node.ledger.refusal_counts["member-revoked"] > refused, "refused anew")
    assert linked(bad) == set()


async def test_a_relabelled_device_gets_what_is_for_its_new_labels(fleet: Fleet) -> None:
    hub = await fleet.start_hub()
    agent = await fleet.new_agent("agent")
    path = fleet.directory / "app"
    path.write_bytes(b"canary")
    deployment = fleet.release("app", "1.0", [str(path)], meta={"path": "app"}, selector="ring=canary")
    await fleet.publish()
    await until(lambda: agent.node.keeper.ready == fleet.repository.timestamp_version, "it knows")
    assert state_of(agent, deployment) is None
    devices.relabel(fleet.repository, agent.identity.device, {"ring": "canary"})
    await fleet.publish()
    assert await settled([agent], deployment) == [State.SUCCEEDED]
    assert agent.describe(1).labels == {"ring": "canary"}
    (seen,) = await hub.observer.devices({})
    assert seen.labels == {"ring": "canary"}


async def test_no_machine_on_the_network_holds_a_key_that_enrols(fleet: Fleet) -> None:
    """Neither a hub's directory nor a device's has the enrolment key, or the ticket's after joining."""
    await fleet.start_hub()
    text = fleet.ticket(labels={"site": "oban"})
    await join(text, fleet.directory / "agent")
    ticket = decode_part(decode_ticket(text, time.time()).invitation, TicketSecret)
    names = ("enrolment", "releases", "deployments", "fleet", "root-1", "targets", "snapshot")
    secrets = [ticket.key, *(fleet.repository.private_key(name).private_bytes_raw() for name in names)]
    kept = [
        path.read_bytes()
        for name in ("hub", "agent")
        for path in (fleet.directory / name).rglob("*")
        if path.is_file()
    ]
    assert kept
    for secret in secrets:
        forms = (secret, secret.hex().encode(), base64.b64encode(secret))
        assert not any(form in data for form in forms for data in kept)


async def test_membership_is_renewed_at_half_of_its_life_over_the_link(fleet: Fleet) -> None:
    hub = await fleet.start_hub()
    await fleet.join("agent")
    home = Home(fleet.directory / "agent")
    record = home.member()
    # As if it had joined two years ago: an old receipt of the same hub over the same papers.
    old = _receipt(fleet, hub, record.certificate, home.identity().device, time.time() - 2 * YEAR)
    home.keep(msgspec.structs.replace(record, certificate=old))
    agent = await fleet.start_agent("agent")
    await until(lambda: Home(fleet.directory / "agent").member().certificate != old, "renewed")
    validity = receipt_validity(home.member().certificate)
    assert validity is not None
    assert validity[0] == pytest.approx(time.time(), abs=60)
    assert agent.node.certificate == home.member().certificate
    assert agent.labels == record.labels


async def test_a_device_whose_membership_has_expired_recovers_at_a_hub(fleet: Fleet) -> None:
    """Off for years: nobody links with it, and the hub that is asked as by a newcomer knows it again."""
    hub = await fleet.start_hub()
    await fleet.join("agent")
    home = Home(fleet.directory / "agent")
    record = home.member()
    expired = _receipt(fleet, hub, record.certificate, home.identity().device, time.time() - 4 * YEAR)
    home.keep(msgspec.structs.replace(record, certificate=expired))
    agent = await fleet.start_agent("agent")
    await until(lambda: agent.identity.device in linked(hub), "linked again")


async def test_an_expired_device_that_was_expelled_meanwhile_does_not_come_back(fleet: Fleet) -> None:
    hub = await fleet.start_hub()
    await fleet.join("agent")
    home = Home(fleet.directory / "agent")
    revoke(fleet, home.identity().device)
    await fleet.publish()
    with pytest.raises(MemberRevoked):
        hub.membership.applicant(home.member().certificate, home.identity().device)
    agent = await fleet.start_agent("agent")
    await until(lambda: hub.node.ledger.refusal_counts["member-revoked"] > 0, "refused")
    assert linked(agent) == set()


async def test_a_stolen_hub_is_expelled_and_its_devices_go_on_at_another(fleet: Fleet) -> None:
    stolen = await fleet.start_hub("stolen")
    agent = await fleet.new_agent("agent")
    other = await fleet.start_hub("other")
    # First the devices hear of the other hub, while they still have the one that they know.
    fleet.repository.set_hubs([fleet.hub_address(other)])
    await fleet.publish()
    await until(lambda: other.identity.device in linked(agent), "at both hubs")
    revoke(fleet, stolen.identity.device, since=time.time())
    await fleet.publish()
    await until(lambda: other.identity.device in linked(agent), "at the other hub")
    await until(
        lambda: stolen.identity.device not in linked(agent) | linked(other), "the stolen one is cut off"
    )


async def test_a_kit_is_one_hubs(fleet: Fleet) -> None:
    hub = await fleet.start_hub()
    await fleet.stop(hub)
    home = Home(fleet.directory / "hub")
    settings = HubSettings(bind="127.0.0.1:0", public=(), relay=None, content=ContentSettings())
    with pytest.raises(WouldOverwrite, match="has a key of its own"):
        await Hub.open(parse_hub_kit(export_hub_kit(fleet.repository)), home, settings)
    others = parse_hub_kit(export_hub_kit(fleet.repository, DeviceId("ab" * 32)))
    with pytest.raises(Misuse, match="does not make this machine a hub"):
        await Hub.open(others, home, settings)
    again = parse_hub_kit(export_hub_kit(fleet.repository, home.identity().device))
    fleet.hubs.append(await Hub.open(again, home, settings))


def _receipt(fleet: Fleet, hub: Hub, certificate: bytes, device: DeviceId, at: float) -> bytes:
    """What the hub would have given a device at another time."""
    applicant = hub.membership.applicant(certificate, device)
    older = issue_certificate(
        fleet.repository.enrolment_key(),
        fleet=fleet.repository.fleet_id,
        device=hub.identity.device,
        role="hub",
        labels={},
        now=at,
    )
    return countersign(hub._key, older, applicant.invitation, applicant.application, device=device, now=at)
