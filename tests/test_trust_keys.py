"""Key files: who can read them, what a wrong passphrase says, what is on disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from driftseed.core.errors import NotFound, StoreDamaged, UnsafePermissions, WouldOverwrite, WrongPassphrase
from driftseed.trust.keys import create_key, load_private, load_signer, public_hex


def never(name: str) -> bytes:
    raise AssertionError(f"asked for the passphrase of {name}")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_is_read_back_and_only_its_owner_can(tmp_path: Path, passphrase: bytes | None) -> None:
    path = tmp_path / "targets.pem"
    public = create_key(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = load_private(path, never if passphrase is None else lambda _: passphrase)
    assert public_hex(key) == public
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
    assert key.private_bytes_raw() not in path.read_bytes()


def test_a_signer_signs_as_the_key(tmp_path: Path) -> None:
    public = create_key(tmp_path / "k.pem", None)
    signer = load_signer(tmp_path / "k.pem")
    signer.public_key.verify_signature(signer.sign(b"message"), b"message")
    assert signer.public_key.keyval["public"] == public


def test_a_wrong_or_missing_passphrase_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    create_key(path, b"right")
    before = path.read_bytes()
    with pytest.raises(WrongPassphrase, match=r"k\.pem does not open with this passphrase"):
        load_private(path, lambda _: b"wrong")
    for given in (None, lambda _: b""):
        with pytest.raises(WrongPassphrase, match="no passphrase was given"):
            load_private(path, given)
    assert path.read_bytes() == before


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
def test_an_unusable_passphrase_makes_no_file(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(WrongPassphrase):
        create_key(tmp_path / "k.pem", passphrase)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k.pem"
    create_key(path, None)
    path.chmod(mode)
    with pytest.raises(UnsafePermissions) as caught:
        load_private(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    create_key(path, None)
    before = path.read_bytes()
    with pytest.raises(WouldOverwrite):
        create_key(path, None)
    assert path.read_bytes() == before


def test_what_is_no_ed25519_key_is_damaged_and_what_is_not_there_not_found(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    with pytest.raises(NotFound):
        load_private(path)
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(StoreDamaged):
        load_private(path)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(StoreDamaged, match="not an Ed25519 key"):
        load_private(path)
