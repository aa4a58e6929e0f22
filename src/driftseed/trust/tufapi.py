"""The names of python-tuf and securesystemslib that this package uses, imported in one place.

Both document them where they are imported from here, but re-export them implicitly, which mypy's strict mode
does not take.
"""

from __future__ import annotations

from typing import TypeVar

from securesystemslib.signer import (  # type: ignore[attr-defined]  # see above
    CryptoSigner,
    Key,
    Signer,
    SSlibKey,
)
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]  # see above
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)

__all__ = [
    "BadVersionNumberError",
    "CryptoSigner",
    "DelegatedRole",
    "Delegations",
    "DownloadHTTPError",
    "DownloadLengthMismatchError",
    "ExpiredMetadataError",
    "Key",
    "LengthOrHashMismatchError",
    "MetaFile",
    "Metadata",
    "RepositoryError",
    "Root",
    "SSlibKey",
    "Signed",
    "SignedT",
    "Signer",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
]
