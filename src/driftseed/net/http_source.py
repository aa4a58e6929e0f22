"""Files over HTTP or HTTPS: a source of metadata and small targets for ``trust.source.MetadataSource``.

Slow retrieval (TUF 1.5.2) is bounded twice: a read that gives nothing for ``READ_TIMEOUT_S`` fails, and so does an
answer that is slower than ``HTTP_RATE_MIN`` after its first ``READ_TIMEOUT_S``.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from driftseed import __version__
from driftseed.core import limits
from driftseed.core.errors import FileMissing, Misuse, PeerStalled, TransportError

_CHUNK: Final = 64 * limits.KIB
_ABSENT: Final = frozenset({403, 404})
"""What object stores answer for a file that is not there (TUF 5.3.3 takes both for it)."""


class HttpSource:
    """Gets files by their URL, one at a time. Blocking: call it in a worker thread.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic

    def fetch(self, name: str, max_length: int) -> bytes:
        """Get one file.

        Args:
            name: its URL, http or https.
            max_length: bytes; one byte more is read of a longer file, so that the caller sees that it is.

        Raises:
            FileMissing: the server does not have it.
            PeerStalled: it is too slow.
            TransportError: it failed.
            Misuse: the URL is none of http or https.
        """
        if urlsplit(name).scheme not in {"http", "https"}:
            raise Misuse(f"{name} is not a URL of http or https")
        request = urllib.request.Request(name, headers={"User-Agent": f"driftseed/{__version__}"})  # noqa: S310 - the scheme was checked
        try:
            with urllib.request.urlopen(request, timeout=limits.READ_TIMEOUT_S) as response:  # noqa: S310 - likewise
                return self._read(response, name, max_length)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _ABSENT:
                raise FileMissing(f"{name}: the server says {error.code}") from None
            raise TransportError(f"{name}: the server says {error.code} {error.reason}") from None
        except TimeoutError:
            raise PeerStalled(f"{name}: nothing came for {limits.READ_TIMEOUT_S:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: a URL, header or chunk length that http.client does not take.
            raise TransportError(f"{name} cannot be fetched: {error}") from None

    def _read(self, response: http.client.HTTPResponse, name: str, max_length: int) -> bytes:
        began = self._monotonic()
        data = bytearray()
        while len(data) <= max_length and (chunk := response.read1(min(_CHUNK, max_length + 1 - len(data)))):
            data += chunk
            spent = self._monotonic() - began
            if (
                spent > limits.READ_TIMEOUT_S
                and len(data) < (spent - limits.READ_TIMEOUT_S) * limits.HTTP_RATE_MIN
            ):
                raise PeerStalled(f"{name}: {len(data)} bytes in {spent:.0f} s is too slow to be honest")
        return bytes(data)
