"""Where private keys are, and how they are used: files here, smart cards, HSMs and cloud key services by URI.

A key is named on the command line, and remembered in ``fleet.json``, by one of::

    PATH, file:PATH           a key file (``trust/keys.py``), or the public half of one that is elsewhere
    hsm:[ID][?label=TOKEN]    PKCS #11 (``PYKCS11LIB`` names the module; needs ``driftseed[hsm]``)
    awskms:KEY  gcpkms:NAME  azurekms://VAULT.vault.azure.net/keys/NAME/VERSION  hv:NAME/VERSION
                              cloud key services and HashiCorp Vault, each with its own library's credentials

All but the first are securesystemslib's signers under its own URIs. They sign TUF metadata only: membership and
the timestamps that hubs renew need the key itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qsl, urlparse

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from driftseed.core.errors import DeviceError, KeyUnusable, Misuse, NotFound, StoreDamaged
from driftseed.trust.keys import Passphrase, load_private, signer_for
from driftseed.trust.tufapi import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    AzureSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
    VaultSigner,
)

FILE: Final = "file"
_PUBLIC: Final = b"-----BEGIN PUBLIC KEY-----"

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key that a person named: its public half, and its URI if its private half can be used from here."""

    public: Key
    uri: str | None
    ed25519: Ed25519PrivateKey | None = None
    """The private key itself, where it is a file."""

    @property
    def public_hex(self) -> str:
        """The public half of an Ed25519 key, hexadecimal. Raises Misuse for another kind of key."""
        if self.public.keytype != "ed25519":
            raise Misuse(
                f"a key of type {self.public.keytype} where an Ed25519 key is needed",
                hint="make one: driftseed key create --out FILE",
            )
        return str(self.public.keyval["public"])


def signer_of(named: NamedKey, passphrase: Passphrase) -> Signer:
    """A signer with the key that a person named. Raises Misuse when only its public half was."""
    if named.ed25519 is not None:
        return signer_for(named.ed25519)
    uri = named.uri
    if uri is None:
        raise Misuse(
            f"only the public half of key {named.public.keyid[:16]} was given", hint="name its private file"
        )
    secret = _secret(passphrase, uri)
    return _foreign(uri, lambda: Signer.from_priv_key_uri(uri, named.public, secret))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half as PEM, to be handed to whoever names it in metadata."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def scheme_of(text: str) -> str | None:
    """The scheme of a URI that names a key elsewhere; None for a file."""
    scheme, separator, _ = text.partition(":")
    return scheme if separator and scheme in SIGNER_FOR_URI_SCHEME and scheme != "file2" else None


def name_key(text: str, passphrase: Passphrase) -> NamedKey:
    """Read the key that a person names.

    Args:
        text: a path or URI, as above.
        passphrase: asked for encrypted files, and for PINs.

    Raises:
        NotFound, UnsafePermissions, WrongPassphrase, StoreDamaged: as ``keys.load_private``.
        KeyUnusable: a key device or service does not give it.
        Misuse: the URI is malformed.
    """
    if (scheme := scheme_of(text)) is not None:
        return _import(scheme, text, passphrase)
    path = Path(text.removeprefix("file:"))
    if (public := read_public(path)) is not None:
        return NamedKey(public, None)
    key = load_private(path, passphrase)
    return NamedKey(signer_for(key).public_key, f"{FILE}:{path.absolute()}", key)


def read_public(path: Path) -> Key | None:
    """The key of a public PEM file; None when it is another kind of file, or not there."""
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError:
        return None
    if not head.lstrip().startswith(_PUBLIC):
        return None
    try:
        return SSlibKey.from_crypto(load_pem_public_key(head))
    except ValueError as error:
        raise StoreDamaged(f"{path} is not a public key in PEM: {error}") from None


def _import(scheme: str, uri: str, passphrase: Passphrase) -> NamedKey:
    parsed = urlparse(uri)
    rest = uri.partition(":")[2]

    def found() -> tuple[str, Key]:
        match scheme:
            case "hsm":
                label = dict(parse_qsl(parsed.query)).get("label")
                number = int(parsed.path) if parsed.path else None
                return HSMSigner.import_(number, label, _secret(passphrase, uri))
            case "awskms":
                return AWSSigner.import_(rest)
            case "gcpkms":
                return GCPSigner.import_(rest)
            case "hv":
                return VaultSigner.import_(rest.partition("/")[0])
            case "azurekms":
                return AzureSigner.import_(parsed.netloc.partition(".")[0], parsed.path.split("/")[2])
            case _:
                raise Misuse(
                    f"keys of {scheme}: are not supported",
                    hint="use hsm:, awskms:, gcpkms:, azurekms: or hv:",
                )

    named, public = _foreign(uri, found)
    return NamedKey(public, named)


def _secret(passphrase: Passphrase, uri: str) -> Callable[[str], str]:
    return lambda what: passphrase(f"{what} of {uri}").decode()


def _foreign(uri: str, act: Callable[[], FoundT]) -> FoundT:
    """Run code of a key device's or service's library, which raises what it likes."""
    try:
        return act()
    except (DeviceError, Misuse):
        raise
    except Exception as error:
        raise KeyUnusable(
            f"the key {uri} cannot be used: {type(error).__name__}: {error}",
            hint="check the device or credentials, the library it needs, and for hsm: PYKCS11LIB",
        ) from error


class Keyring:
    """The private keys that a fleet directory can use.

    Args:
        directory: DIR.
        recorded: URIs by key id, from ``fleet.json``.
        passphrase: asked when a key that is needed is encrypted, or has a PIN.
        brought: keys that a person named for this command only.
    """

    def __init__(
        self,
        directory: Path,
        recorded: Mapping[str, str],
        passphrase: Passphrase,
        brought: Iterable[NamedKey] = (),
    ) -> None:
        self._directory = directory
        self._recorded = recorded
        self._passphrase = passphrase
        self._brought = {named.public.keyid: named for named in brought}
        self._loaded: dict[str, Signer] = {}

    def uri(self, keyid: str) -> str | None:
        """Where a key is said to be."""
        named = self._brought.get(keyid)
        return named.uri if named is not None else self._recorded.get(keyid)

    def path(self, keyid: str) -> Path | None:
        """The file of a key that is one."""
        uri = self.uri(keyid)
        return None if uri is None or scheme_of(uri) else self._directory / uri.removeprefix(f"{FILE}:")

    def is_here(self, keyid: str) -> bool:
        """Whether its file is there; of a device or service it is believed."""
        path = self.path(keyid)
        return path.is_file() if path is not None else self.uri(keyid) is not None

    def signer(self, key: Key) -> Signer | None:
        """A key's signer; None when the key is not here.

        Raises:
            UnsafePermissions, WrongPassphrase, StoreDamaged: as ``keys.load_private``.
            Misuse: the file holds another key.
            KeyUnusable: a key device or service does not give it.
        """
        if key.keyid not in self._loaded:
            if not self.is_here(key.keyid):
                return None
            self._loaded[key.keyid] = self._load(key)
        return self._loaded[key.keyid]

    def signers(self, role: str, threshold: int, keys: Iterable[Key], *, every: bool = False) -> list[Signer]:
        """As many of a role's signers as must sign.

        Args:
            role: for messages.
            threshold: how many must sign.
            keys: the role's.
            every: all that are here, not only the threshold.

        Raises:
            NotFound: fewer are here; besides what ``signer`` raises.
        """
        found: list[Signer] = []
        absent: list[Key] = []
        for key in keys:
            signer = self.signer(key) if every or len(found) < threshold else None
            if signer is not None:
                found.append(signer)
            else:
                absent.append(key)
        if len(found) < threshold:
            places = ", ".join(self._place(key.keyid) for key in absent)
            raise NotFound(
                f"{len(found)} keys of the role {role} are here, {threshold} must sign: {places}",
                hint=f"bring {threshold - len(found)} of them, or name them with --with",
            )
        return found

    def private(self, keyid: str, what: str) -> Ed25519PrivateKey:
        """A key itself, for what is not TUF metadata. Raises NotFound, and what ``keys.load_private`` does."""
        named = self._brought.get(keyid)
        if named is not None and named.ed25519 is not None:
            return named.ed25519
        path = self.path(keyid)
        if path is None:
            raise NotFound(
                f"the {what} key {keyid[:16]} is not in a file here",
                hint="membership and kits need the key itself: bring its file, or name it with --with",
            )
        return load_private(path, self._passphrase)

    def _load(self, key: Key) -> Signer:
        uri = self.uri(key.keyid) or ""
        if scheme_of(uri) is not None:
            secret = _secret(self._passphrase, uri)
            return _foreign(uri, lambda: Signer.from_priv_key_uri(uri, key, secret))
        named = self._brought.get(key.keyid)
        path = self._directory / uri.removeprefix(f"{FILE}:")
        loaded = named.ed25519 if named is not None else None
        signer = signer_for(loaded or load_private(path, self._passphrase))
        if signer.public_key.keyid != key.keyid:
            raise Misuse(
                f"{path} is not the key {key.keyid[:16]} any more", hint="restore it from your backup"
            )
        return signer

    def _place(self, keyid: str) -> str:
        path = self.path(keyid)
        return str(path) if path is not None else self.uri(keyid) or f"key {keyid[:16]}"
