"""Private keys on disk: one Ed25519 key a file, PEM PKCS #8, readable by its owner only.

An encrypted key is PBES2 with AES-256-CBC, as OpenSSL writes it (``openssl pkey`` reads these files). Its key
derivation is quick by today's measure (2048 rounds of PBKDF2-HMAC-SHA-256): the passphrase must be long
rather than clever, and the file must stay as private as an unencrypted one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from driftseed.core.errors import StoreDamaged, WouldOverwrite, WrongPassphrase
from driftseed.store.files import create_secret, read_secret
from driftseed.trust.tufapi import CryptoSigner

Passphrase = Callable[[str], bytes]
"""Asked for the passphrase of one key, with the key file's path; called only for keys that are encrypted."""

_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 lowercase hexadecimal characters."""
    return key.public_key().public_bytes_raw().hex()


def encode_key(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """A private key as PEM.

    Args:
        key: the key.
        passphrase: 1 to 1023 bytes; None leaves the key unencrypted.

    Raises:
        WrongPassphrase: the passphrase is empty or too long.
    """
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        if not 1 <= len(passphrase) <= 1023:
            raise WrongPassphrase(
                f"a passphrase of {len(passphrase)} bytes",
                hint="give 1 to 1023 bytes, or say that there shall be none",
            )
        encryption = BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def create_key(path: Path, passphrase: bytes | None) -> str:
    """Make a new key and write it, 0600.

    Returns:
        The public half, hexadecimal.

    Raises:
        WouldOverwrite: there is a file of this name.
        WrongPassphrase: the passphrase is empty or too long.
        DiskFull: nothing was written.
    """
    if path.exists() or path.is_symlink():
        raise WouldOverwrite(f"{path} exists", hint="a key that is replaced cannot be had back: move it away")
    key = Ed25519PrivateKey.generate()
    create_secret(path, encode_key(key, passphrase))
    return public_hex(key)


def load_private(path: Path, passphrase: Passphrase | None = None) -> Ed25519PrivateKey:
    """Read a key file.

    Raises:
        NotFound: there is no such file.
        UnsafePermissions: group or others can read it; the hint is the command that mends it.
        WrongPassphrase: it is encrypted and does not open with what ``passphrase`` gave, or nothing was given.
        StoreDamaged: it is not a PEM file with an Ed25519 key.
    """
    return decode_key(read_secret(path), str(path), passphrase)


def decode_key(pem: bytes, name: str, passphrase: Passphrase | None = None) -> Ed25519PrivateKey:
    """Read a key from PEM; ``name`` stands for it in messages. Raises as ``load_private``."""
    secret: bytes | None = None
    if pem.lstrip().startswith(_ENCRYPTED):
        secret = passphrase(name) if passphrase is not None else None
        if not secret:
            raise WrongPassphrase(
                f"{name} is encrypted and no passphrase was given",
                hint="set DRIFTSEED_PASSPHRASE, or answer the prompt",
            )
    try:
        key = load_pem_private_key(pem, secret)
    except (ValueError, TypeError) as error:
        if secret is not None:
            raise WrongPassphrase(
                f"{name} does not open with this passphrase", hint="try again; nothing was changed"
            ) from error
        raise StoreDamaged(
            f"{name} is not a private key in PEM", hint="restore it from your backup"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreDamaged(f"{name} holds a {type(key).__name__}, not an Ed25519 key")
    return key


def signer_for(key: Ed25519PrivateKey) -> CryptoSigner:
    """The key as securesystemslib's signer, for TUF metadata."""
    return CryptoSigner(key)


def load_signer(path: Path, passphrase: Passphrase | None = None) -> CryptoSigner:
    """Read a key file as a signer for TUF metadata. Raises as ``load_private``."""
    return signer_for(load_private(path, passphrase))
