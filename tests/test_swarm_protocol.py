"""Frames between agent and engine."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.swarm import protocol

SHA256 = "ab" * 32

COMMANDS: list[protocol.Command] = [
    protocol.Add(
        sha256=SHA256, torrent=b"d4:infoe", directory="/var/lib/x", filename="y", whole=False, super_seed=True
    ),
    protocol.Remove(sha256=SHA256),
    protocol.ConnectPeer(sha256=SHA256, ip="127.1.2.3", port=1),
    protocol.Ban(ip="127.1.2.3"),
    protocol.SetLimits(upload=0, download=1 << 40),
    protocol.SuperSeed(sha256=SHA256, on=True),
    protocol.Rename(sha256=SHA256, filename="z"),
    protocol.Stop(),
]
EVENTS: list[protocol.EngineEvent] = [
    protocol.Ready(ip="127.0.0.1", port=65535),
    protocol.Added(sha256=SHA256),
    protocol.Progress(sha256=SHA256, done=1, total=2, rate_down=3, rate_up=4, peers=5, checking=True),
    protocol.Completed(sha256=SHA256),
    protocol.HashFailed(sha256=SHA256, piece=7),
    protocol.Banned(sha256=SHA256, ip="127.0.0.66"),
    protocol.PeerConnected(sha256=SHA256, ip="127.0.0.66", port=1),
    protocol.PeerDisconnected(sha256=SHA256, ip="127.0.0.66", port=1, message="gone"),
    protocol.StorageFailed(sha256=SHA256, errno=28, message="No space left on device"),
    protocol.Renamed(sha256=SHA256, filename="z"),
    protocol.Failed(sha256=SHA256, message="no"),
]


@given(cuts=st.lists(st.integers(1, 60), min_size=1))
def test_frames_come_back_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(map(protocol.encode, EVENTS))
    decoder = protocol.event_decoder()
    received: list[protocol.EngineEvent] = []
    while stream:
        for cut in cuts:
            received += decoder.receive(stream[:cut])
            stream = stream[cut:]
    assert received == EVENTS


def test_all_commands_come_back() -> None:
    assert protocol.command_decoder().receive(b"".join(map(protocol.encode, COMMANDS))) == COMMANDS


def test_frame_has_these_bytes() -> None:
    assert protocol.encode(protocol.Ready(ip="127.0.0.1", port=6881)).hex() == (
        "00000021"  # 33 bytes follow
        "83"  # a map of three
        "a474797065a55265616479"  # type: Ready
        "a26970a93132372e302e302e31"  # ip: 127.0.0.1
        "a4706f7274cd1ae1"  # port: 6881
    )


@pytest.mark.parametrize("allowed", [protocol.EVENT_BYTES_MAX])
def test_frame_of_any_length_is_bounded_before_it_is_read(allowed: int) -> None:
    decoder = protocol.event_decoder()
    assert decoder.receive(struct.pack(">I", allowed)) == []
    with pytest.raises(ValueError, match="are allowed"):
        protocol.event_decoder().receive(struct.pack(">I", allowed + 1))


def test_deeply_nested_frame_is_refused() -> None:
    body = b"\x82\xa4type\xa5Ready\xa1x" + b"\x91" * 15_000 + b"\xc0"
    with pytest.raises(ValueError, match="nested too deeply"):
        protocol.event_decoder().receive(struct.pack(">I", len(body)) + body)


@given(body=st.binary(max_size=100))
def test_garbage_is_a_value_error_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever msgspec says of it
        protocol.event_decoder().receive(struct.pack(">I", len(body)) + body)


def test_messages_for_people_are_cut_to_what_a_frame_holds() -> None:
    event = protocol.Failed(sha256=SHA256, message=protocol.clip("x" * 10_000))
    assert protocol.event_decoder().receive(protocol.encode(event)) == [event]
