"""The doctor measures a real hub, its relay and its STUN, on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from driftseed.agent.doctor import measure
from driftseed.cli.main import run
from driftseed.core.errors import PortTaken
from driftseed.core.model import NodeAddress
from driftseed.core.natprobe import Mapping, classify
from driftseed.core.stun import BindingRequest, decode
from driftseed.net import portmap, stun
from support_fleet import until
from support_net import endpoint
from support_relay import relay


def free_pair() -> int:
    """A UDP port that is free with the one after it, as likely as not."""
    for _ in range(50):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
        ):
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports")


async def test_without_a_nat_it_sees_that_there_is_none() -> None:
    server = stun.StunServer.open("127.0.0.1", port := free_pair())
    try:
        seen = await stun.observe([("127.0.0.1", port)])
    finally:
        server.close()
    behaviour = classify(seen.observations)
    assert seen.servers == 1
    assert behaviour.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert not behaviour.translated
    assert behaviour.hairpin
    assert seen.observations.answer_from_other_port


async def test_a_server_that_is_not_there_is_no_server() -> None:
    seen = await stun.observe([("127.0.0.1", free_pair())])
    assert (seen.servers, seen.observations.first) == (0, None)


async def test_noise_and_tricks_get_no_answer() -> None:
    """A reflector that answers to another address or port than the asker's could be aimed at somebody."""
    server = stun.StunServer.open("127.0.0.1", port := free_pair())
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.setblocking(False)
            asker.bind(("127.0.0.1", 0))
            for data in (
                b"",
                os.urandom(20),
                os.urandom(1400),
                BindingRequest(b"a" * 12, response_port=53).encode(),
                BindingRequest(b"b" * 12, change_ip=True).encode(),
                BindingRequest(b"c" * 12).encode(),
            ):
                await loop.sock_sendto(asker, data, ("127.0.0.1", port))
            async with asyncio.timeout(5):
                answer = decode(await loop.sock_recv(asker, 2048))
            assert answer is not None
            assert answer.transaction == b"c" * 12
        assert server.answered == 1
    finally:
        server.close()


async def test_answers_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftseed.core.limits.STUN_ANSWERS_PER_SECOND", 5.0)
    server = stun.StunServer.open("127.0.0.1", port := free_pair())
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.setblocking(False)
            for _ in range(100):
                await loop.sock_sendto(asker, BindingRequest(b"a" * 12).encode(), ("127.0.0.1", port))
            await until(lambda: server.answered >= 5, "answers")
        assert server.answered < 20
    finally:
        server.close()


async def test_a_taken_port_is_named() -> None:
    server = stun.StunServer.open("127.0.0.1", port := free_pair())
    try:
        with pytest.raises(PortTaken, match=str(port)):
            stun.StunServer.open("127.0.0.1", port)
    finally:
        server.close()


async def test_a_hub_and_its_relay_are_measured(tmp_path: Path) -> None:
    async with relay() as (_, url), endpoint() as hub:
        address = NodeAddress(device=hub.device, addrs=[f"127.0.0.1:{hub.port}"], relay=url)
        measured = await measure(tmp_path, [address], [("127.0.0.1", 9)], None)
    (by_udp,), (by_tcp,) = measured.hubs, measured.relays
    assert by_udp.ms is not None
    assert by_tcp.ms is not None
    assert measured.clock_skew_s is not None
    assert abs(measured.clock_skew_s) < 5
    assert measured.stun_servers == 0
    assert measured.free_bytes > 0


async def test_what_is_not_there_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driftseed.agent.doctor.DIAL_S", 0.5)
    address = NodeAddress(device="aa" * 32, addrs=["127.0.0.1:9"], relay="http://127.0.0.1:9")
    measured = await measure(tmp_path, [address], [("127.0.0.1", 9)], None)
    assert [way.ms for way in (*measured.hubs, *measured.relays)] == [None, None]
    assert "refused" in measured.relays[0].why


def test_the_default_gateway_is_read_from_the_kernels_table() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert portmap.gateway(table) == "192.168.1.1"
    assert portmap.gateway(table.splitlines()[0]) is None


def test_the_command_says_it_in_json_and_fails_when_something_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driftseed.agent.doctor.DIAL_S", 0.3)
    monkeypatch.setattr("driftseed.net.portmap.gateway", lambda: None)
    hub = f"{'d7' * 32}@127.0.0.1:9"
    code = run(["doctor", "--data", str(tmp_path), "--hub", hub, "--stun", "127.0.0.1:9", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 1
    assert {"udp", "relay", "nat", "ipv6", "clock", "disk"} <= {each["check"] for each in said["findings"]}
    assert said["measured"]["hubs"][0]["ms"] is None
