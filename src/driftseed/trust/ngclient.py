"""python-tuf's client without its HTTP library.

``tuf.ngclient`` imports urllib3 (and with it email, http.client and more: 3 MB of an agent's resident memory) for its
default fetcher, which is not used here: files come from a ``MetadataSource``. So the module of that fetcher is
represented, while ``tuf.ngclient`` is imported for the first time, by one whose class imports the real
one when somebody makes an instance. Everybody else's ``import tuf.ngclient.urllib3_fetcher`` finds the real module.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

_PACKAGE: Final = "tuf.ngclient"
_FETCHER: Final = "tuf.ngclient.urllib3_fetcher"


class Urllib3Fetcher:
    """Becomes python-tuf's own fetcher when it is made."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """An instance of the real class."""
        return importlib.import_module(_FETCHER).Urllib3Fetcher(*arguments, **options)


def _without_http() -> ModuleType:
    if _PACKAGE in sys.modules:
        return sys.modules[_PACKAGE]
    standin = ModuleType(_FETCHER)
    standin.__dict__[Urllib3Fetcher.__name__] = Urllib3Fetcher
    sys.modules[_FETCHER] = standin
    try:
        return importlib.import_module(_PACKAGE)
    finally:
        del sys.modules[_FETCHER]


_without_http()

# After the above, and by name, so that type checkers see the real classes.
from tuf.ngclient import (  # type: ignore[attr-defined]  # noqa: E402  # public, but re-exported implicitly
    FetcherInterface,
    Updater,
    UpdaterConfig,
)

__all__ = ["FetcherInterface", "Updater", "UpdaterConfig"]
