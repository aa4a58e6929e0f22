"""Signed envelopes: a payload, the key that signed it, the signature; nothing is re-encoded to check it.

An envelope is one MessagePack map::

    payload    bin   what is signed
    key        bin   32 bytes, Ed25519 public key (RFC 8032)
    signature  bin   64 bytes, over context || 0x00 || payload

The context is a fixed string for each kind of document ("driftseed membership v1"), so that a signature over
one kind never passes for another kind, and no signature of ours is one over TLS or TUF bytes.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from driftseed.core.ids import is_weak_key


class EnvelopeError(ValueError):
    """An envelope is too large, malformed, or not signed by its key; the caller says what that means."""


class Envelope(Struct, frozen=True, kw_only=True):
    """A payload with its signature, not yet verified."""

    payload: bytes
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    @property
    def signer(self) -> str:
        """The key that is said to have signed, hexadecimal."""
        return self.key.hex()

    def verify(self, context: bytes) -> None:
        """Check the signature under the envelope's own key. Raises EnvelopeError.

        The caller decides whether that key may sign such a document.
        """
        if is_weak_key(self.key):
            raise EnvelopeError("its key is one that anybody can sign with")
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(
                self.signature, _message(context, self.payload)
            )
        except (InvalidSignature, ValueError):
            # ValueError: 32 bytes that are no point of the curve.
            raise EnvelopeError("the signature is not by the key that it names") from None


PayloadT = TypeVar("PayloadT", bound=Struct)

_decoder: Final = msgspec.msgpack.Decoder(Envelope)
_encoder: Final = msgspec.msgpack.Encoder()


def _message(context: bytes, payload: bytes) -> bytes:
    return context + b"\0" + payload


def seal(key: Ed25519PrivateKey, context: bytes, payload: Struct) -> bytes:
    """Sign a payload; returns the envelope as it travels."""
    encoded = _encoder.encode(payload)
    return _encoder.encode(
        Envelope(
            payload=encoded,
            key=key.public_key().public_bytes_raw(),
            signature=key.sign(_message(context, encoded)),
        )
    )


def decode_envelope(data: bytes, max_length: int) -> Envelope:
    """Take an envelope apart, verifying nothing.

    Args:
        data: from a peer.
        max_length: bytes, looked at before anything else.

    Raises:
        EnvelopeError: too large, or not an envelope.
    """
    if len(data) > max_length:
        raise EnvelopeError(f"{len(data)} bytes where {max_length} are allowed")
    return _decode(_decoder, data)


def decode_payload(envelope: Envelope, kind: type[PayloadT]) -> PayloadT:
    """Decode the payload of a verified envelope. Raises EnvelopeError."""
    return _decode(msgspec.msgpack.Decoder(kind), envelope.payload)


def _decode(decoder: msgspec.msgpack.Decoder[PayloadT], data: bytes) -> PayloadT:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"does not decode: {error}") from None
