"""Faults that fuzzing found, each by itself and by name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from driftseed.agent.localhttp import LocalServer
from driftseed.agent.router import Router
from driftseed.core.errors import ModuleFailed, PeerMisbehaved, StoreDamaged
from driftseed.core.ids import DeviceId, is_weak_key
from driftseed.core.model import deployment_target
from driftseed.core.neighbours import DirectoryBook
from driftseed.install.modules.unpack import unpack
from driftseed.net import relay_frames
from driftseed.node.contacts import load_contacts
from driftseed.node.home import MEMBERSHIP_FILE, Home
from driftseed.store.files import write_secret
from driftseed.trust.device import FleetTrust
from driftseed.trust.envelope import EnvelopeError, decode_envelope
from driftseed.trust.tufapi import TargetFile, Targets
from support_http import RawClient
from support_trust import FakeClock, Neighbour, Thief, add_release, make_fleet

SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
"""As in libsodium's ge25519_has_small_order; the highest bit is the sign of x."""


@pytest.mark.parametrize("text", SMALL_ORDER)
def test_keys_that_anybody_can_sign_for_stand_for_nobody(text: str) -> None:
    """Against OpenSSL alone, a signature of zeros by the key of zeros passes for one message in four."""
    for key in (bytes.fromhex(text), bytes.fromhex(text)[:-1] + bytes([bytes.fromhex(text)[-1] | 0x80])):
        assert is_weak_key(key)
        for number in range(16):
            with pytest.raises(PeerMisbehaved) as refused:
                relay_frames.check_auth(relay_frames.auth_frame(key, bytes(64)), bytes([number] * 16))
            assert refused.value.kind == "auth-signature"
            data = msgspec.msgpack.encode({"payload": b"%d" % number, "key": key, "signature": bytes(64)})
            with pytest.raises(EnvelopeError, match="anybody can sign"):
                decode_envelope(data, 4096).verify(b"context")


def test_the_weakness_is_real_and_ordinary_keys_do_not_have_it() -> None:
    key = Ed25519PublicKey.from_public_bytes(bytes(32))
    taken = 0
    for number in range(64):
        # ValueError: an OpenSSL that has learnt to refuse the key itself.
        with contextlib.suppress(InvalidSignature, ValueError):
            key.verify(bytes(64), hashlib.sha256(b"%d" % number).digest())
            taken += 1
    assert taken < 64
    for _ in range(64):
        assert not is_weak_key(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_contacts_that_are_not_utf_8_cost_only_the_shortcut(tmp_path: Path) -> None:
    path = tmp_path / "contacts.json"
    path.write_bytes(b'[{"address": {"device": "\xff"}}]')
    book = DirectoryBook(DeviceId("d0" * 32))
    load_contacts(path, book, 0.0)
    assert len(book) == 0


def test_a_membership_that_is_not_utf_8_is_named_with_the_mend(tmp_path: Path) -> None:
    home = Home(tmp_path / "agent")
    home.create()
    write_secret(home.directory / MEMBERSHIP_FILE, b'{"fleet": "\xff"}')
    with pytest.raises(StoreDamaged, match="cannot be read") as damaged:
        home.record()
    assert "join again" in damaged.value.hint


async def test_a_refused_head_request_is_answered_without_a_body(short_path: Path) -> None:
    """Its answer once broke off in the middle, as the method was forgotten with the request."""
    drops: list[str] = []
    server = LocalServer(short_path / "s", Router(), dropped=drops.append)
    await server.start()
    try:
        client = await RawClient.connect(short_path / "s")
        await client.send(b"HEAD /v1/status HTTP/3.1\r\nHost: x\r\n\r\n")
        answer = await client.ended()
        assert answer.startswith(b"HTTP/1.1 505 ")
        assert answer.endswith(b"\r\n\r\n")
        assert drops == ["api-malformed"]
        await client.close()
    finally:
        await server.close()


@pytest.mark.parametrize("damage", ["no name", "encrypted"])
def test_a_zip_with_a_nameless_or_encrypted_entry_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    """Python's own reader ends in an IndexError or RuntimeError."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr(zipfile.ZipInfo("name"), b"content")
    data = bytearray(out.getvalue())
    central = data.index(b"PK\x01\x02")
    if damage == "encrypted":
        data[6] |= 1
        data[central + 8] |= 1
    else:
        data[central + 28] = 0
        data[central + 46 : central + 50] = b""
        end = data.index(b"PK\x05\x06")
        data[end + 12] -= 4
    archive, target = tmp_path / "a.zip", tmp_path / "target"
    archive.write_bytes(data)
    target.mkdir()
    with pytest.raises(ModuleFailed, match="no name, or is encrypted"):
        unpack(archive, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("digest", ["/dev/zero", "../../identity.key", "\0", "ab" * 31, "AB" * 32, ""])
def test_a_signed_hash_that_is_none_leads_to_no_file(tmp_path: Path, digest: str) -> None:
    """It was taken for a file's name: a thief of the deployments' key could have had any file read, without end."""
    clock = FakeClock()
    repository = make_fleet(tmp_path / "fleet", clock)
    add_release(repository, tmp_path)
    good = repository.add_deployment(deployment_id="1" * 32, release="app", version="1.0")
    thief = Thief(repository)
    path = deployment_target("2" * 32)

    def sign(payload: Targets) -> None:
        payload.targets[path] = TargetFile(5, {"sha256": digest}, path)

    device = FleetTrust(tmp_path / "device", repository.first_root, clock)
    fleet = device.refresh(Neighbour(thief.publish({"deployments": sign})))
    assert [each.deployment.id for each in fleet.deployments] == [good.id]
    assert fleet.disagreements == (f"{path}: {path} is signed without a SHA-256",)
