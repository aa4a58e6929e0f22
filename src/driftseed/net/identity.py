"""A device's one key: it is dialled by it, and it signs its reports with it."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.errors import NotFound, StoreDamaged
from driftseed.core.ids import DeviceId
from driftseed.store.files import read_secret, write_secret

SECRET_BYTES = 32
"""Bytes of an Ed25519 secret (RFC 8032, section 5.1.5)."""


class Identity:
    """An Ed25519 key pair (RFC 8032).

    Args:
        secret: 32 bytes.

    Raises:
        ValueError: it has another length.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.device = DeviceId(self._key.public_key().public_bytes_raw().hex())

    @classmethod
    def generate(cls) -> Identity:
        """A new key, from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key file, or make one on a device's first start.

        Args:
            path: 32 raw bytes, mode 0600.

        Raises:
            UnsafePermissions: others can read the file.
            StoreDamaged: it does not hold a key. It is not replaced: the device would become another one.
            DiskFull: no space for a new one.
        """
        try:
            secret = read_secret(path)
        except NotFound:
            identity = cls.generate()
            write_secret(path, identity.secret)
            return identity
        if len(secret) != SECRET_BYTES:
            raise StoreDamaged(
                f"{path} is not a device key: {len(secret)} bytes instead of {SECRET_BYTES}",
                hint="restore it from a backup; deleting it makes this a new device that must join again",
            )
        return cls(secret)

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for the transport."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.device[:10]})"
