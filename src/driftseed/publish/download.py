"""Fetches an artifact that is given by URL, as build systems publish them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from driftseed.core import limits
from driftseed.core.errors import ArtifactUnreadable
from driftseed.publish.artifacts import Progress, artifact_filename, url_filename
from driftseed.store.files import disk_full_as_error

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

CONNECT_TIMEOUT_S: Final = 15.0
"""Seconds for a connection to the server."""
READ_TIMEOUT_S: Final = 60.0
"""Seconds without a byte after which the download is given up."""
REDIRECTS_MAX: Final = 5
"""Times that the server may send us elsewhere."""
READ_BYTES: Final = 256 * limits.KIB
"""Bytes read at once."""


def download(url: str, directory: Path, progress: Progress, *, most: int = limits.ARTIFACT_BYTES_MAX) -> Path:
    """Download a file.

    Its bytes are believed as those of a local file are: the person who releases them vouches for them.

    Args:
        url: http or https.
        directory: where to put the file; the caller removes it.
        progress: called while bytes arrive.
        most: bytes that it may have.

    Returns:
        The file, of a name of its own.

    Raises:
        ArtifactUnreadable: no such thing there, cut off, too large, or the server sends us from https to http.
        DiskFull: no space for it.
    """
    import urllib3  # noqa: PLC0415 - most releases are made of local files

    name = artifact_filename(url_filename(url))
    descriptor, path = tempfile.mkstemp(prefix="download-", dir=directory)
    length = 0
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    # A person sees at once what is wrong; only redirects are followed.
    retries = urllib3.Retry(total=REDIRECTS_MAX, redirect=REDIRECTS_MAX, connect=0, read=0, status=0, other=0)
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            urllib3.PoolManager(timeout=timeout, retries=retries) as pool,
            disk_full_as_error(Path(path)),
        ):
            # "identity": what the server packs for the way is not what its author released.
            response = pool.request(
                "GET", url, preload_content=False, headers={"Accept-Encoding": "identity"}
            )
            try:
                _check(url, response)
                for chunk in response.stream(READ_BYTES, decode_content=False):
                    length += len(chunk)
                    if length > most:
                        raise ArtifactUnreadable(f"{url} has more than the {most} bytes that are allowed")
                    file.write(chunk)
                    progress(f"downloading {name}", len(chunk))
            finally:
                response.close()
    except urllib3.exceptions.HTTPError as error:
        raise ArtifactUnreadable(
            f"{url} cannot be downloaded (after {length} bytes): {error}",
            hint="check the URL, then try again",
        ) from None
    return Path(path)


def _check(url: str, response: BaseHTTPResponse) -> None:
    if response.status != 200:
        raise ArtifactUnreadable(
            f"{url} cannot be downloaded: the server answers with status {response.status}",
            hint="check the URL",
        )
    final = response.geturl() or url
    if url.startswith("https://") and final.startswith("http://"):
        raise ArtifactUnreadable(
            f"{url} leads to {final}, which anybody on the way can change",
            hint="give the https URL of the file itself",
        )
