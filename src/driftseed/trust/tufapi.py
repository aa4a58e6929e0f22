"""The names of python-tuf and securesystemslib that this package uses, imported in one place.

Both document them where they are imported from here, but re-export them implicitly, which mypy's strict mode
does not take.
"""

from __future__ import annotations

from typing import TypeVar

from securesystemslib.signer import (  # type: ignore[attr-defined]  # see above
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
    VaultSigner,
)
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]  # see above
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)

__all__ = [
    "SIGNER_FOR_URI_SCHEME",
    "AWSSigner",
    "AzureSigner",
    "BadVersionNumberError",
    "CryptoSigner",
    "DelegatedRole",
    "Delegations",
    "DownloadHTTPError",
    "DownloadLengthMismatchError",
    "ExpiredMetadataError",
    "GCPSigner",
    "HSMSigner",
    "Key",
    "LengthOrHashMismatchError",
    "MetaFile",
    "Metadata",
    "RepositoryError",
    "Role",
    "Root",
    "SSlibKey",
    "Signed",
    "SignedT",
    "Signer",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "UnsignedMetadataError",
    "VaultSigner",
]
